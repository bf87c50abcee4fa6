//! Names and images of containers, from the sockets of Docker and Podman.
//!
//! Each engine is asked on a thread of its own, which nobody waits for longer than a moment: one that hangs leaves containers
//! without names, and nothing else. What it told last is kept. It is asked again when a container appears, and now and then,
//! since containers can be renamed.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use plimsoll_nats::dead::chain;
use serde::Deserialize;

use super::http::{self, AskError};

/// All containers, also those that are just being started.
const LIST: &str = "/containers/json?all=true";
/// How long an engine may take for an answer that is of use.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a sample waits for an answer, so that a container has its name from its first row on.
const MOMENT: Duration = Duration::from_millis(300);
/// After what time an engine is asked again although no container has appeared.
const REFRESH: Duration = Duration::from_secs(600);
/// After what time an engine that failed is asked again.
const RETRY: Duration = Duration::from_secs(30);

/// What an engine calls a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// The container's name.
    pub name: String,
    /// The image it was made of.
    pub image: String,
}

/// By whole id.
type Names = HashMap<String, Named>;
type Answer = Result<Names, AskError>;

/// The engines of a host.
#[derive(Debug)]
pub struct Engines(Vec<Engine>);

impl Engines {
    /// The engines behind sockets; none of them is asked yet.
    #[must_use]
    pub fn new(sockets: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(sockets.into_iter().map(Engine::new).collect())
    }

    /// Asks the engines where that is due; `appeared` says whether there is a container that was not there at the last call.
    /// Waits a moment for the answers.
    pub fn update(&mut self, appeared: bool, now: Instant) {
        let asked: Vec<bool> = self.0.iter_mut().map(|engine| engine.ask_if_due(appeared, now)).collect();
        let deadline = Instant::now() + MOMENT;
        for (engine, asked) in self.0.iter_mut().zip(asked) {
            let patience = if asked { deadline.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            engine.take_answer(patience, now);
        }
    }

    /// What an engine calls the container of that id.
    #[must_use]
    pub fn named(&self, id: &str) -> Option<&Named> {
        self.0.iter().find_map(|engine| engine.names.get(id))
    }

    /// Why names are missing, a sentence an engine; the sockets that are not there are left out if any engine answers.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let answers = self.0.iter().any(|engine| engine.failure.is_none());
        let failures = self.0.iter().filter_map(|engine| Some((&engine.socket, engine.failure.as_ref()?)));
        failures
            .filter(|(_, failure)| !(failure.absent && answers))
            .map(|(socket, failure)| {
                let socket = socket.display();
                let reason = match failure {
                    Failure { absent: true, .. } => "no engine listens there",
                    Failure { denied: true, .. } => {
                        "put the agent's user into the socket's group, which is as good as root"
                    }
                    Failure { reason, .. } => reason,
                };
                format!("Names and images of the containers behind `{socket}` are missing: {reason}")
            })
            .collect()
    }
}

/// One engine.
#[derive(Debug)]
struct Engine {
    socket: PathBuf,
    worker: Option<Worker>,
    /// Whether the worker owes an answer.
    waiting: bool,
    /// Whether a container has appeared since the engine was last asked.
    wanted: bool,
    asked: Option<Instant>,
    failure: Option<Failure>,
    names: Names,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    /// Whether there is no such socket, or the agent may not use it.
    absent: bool,
    denied: bool,
}

#[derive(Debug)]
struct Worker {
    questions: SyncSender<()>,
    answers: Receiver<Answer>,
}

impl Engine {
    fn new(socket: PathBuf) -> Self {
        Self { socket, worker: None, waiting: false, wanted: false, asked: None, failure: None, names: Names::new() }
    }

    /// Asks where that is due; returns whether an answer is to come soon.
    fn ask_if_due(&mut self, appeared: bool, now: Instant) -> bool {
        self.wanted |= appeared;
        let pause = match (&self.failure, self.wanted) {
            (Some(_), _) => RETRY,
            (None, true) => Duration::ZERO,
            (None, false) => REFRESH,
        };
        let is_due = self.asked.map_or(self.wanted, |asked| now.saturating_duration_since(asked) >= pause);
        if self.waiting || !is_due {
            return false;
        }
        self.asked = Some(now);
        self.wanted = false;
        self.waiting = self.ask();
        self.waiting
    }

    fn ask(&mut self) -> bool {
        if self.worker.is_none() {
            match Worker::start(self.socket.clone()) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => {
                    self.fail(&AskError::Io(error));
                    return false;
                }
            }
        }
        self.worker.as_ref().is_some_and(|worker| worker.questions.try_send(()).is_ok())
    }

    fn take_answer(&mut self, patience: Duration, now: Instant) {
        let Some(worker) = self.worker.as_ref().filter(|_| self.waiting) else {
            return;
        };
        let answer = if patience.is_zero() {
            worker.answers.try_recv().map_err(|error| matches!(error, TryRecvError::Empty))
        } else {
            worker.answers.recv_timeout(patience).map_err(|error| matches!(error, RecvTimeoutError::Timeout))
        };
        match answer {
            Ok(Ok(names)) => {
                self.names = names;
                self.failure = None;
                self.waiting = false;
            }
            Ok(Err(error)) => {
                self.fail(&error);
                self.waiting = false;
            }
            // It says nothing yet: that is a failure once it has had time for an answer.
            Err(true) => {
                if self.asked.is_some_and(|asked| now.saturating_duration_since(asked) > TIMEOUT) {
                    self.fail(&AskError::Late);
                }
            }
            // The worker has died; another takes its place at the next question.
            Err(false) => {
                self.worker = None;
                self.waiting = false;
            }
        }
    }

    fn fail(&mut self, error: &AskError) {
        let kind = match error {
            AskError::Io(error) => Some(error.kind()),
            _ => None,
        };
        self.failure = Some(Failure {
            reason: chain(error).to_string(),
            absent: matches!(kind, Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)),
            denied: kind == Some(io::ErrorKind::PermissionDenied),
        });
    }
}

impl Worker {
    fn start(socket: PathBuf) -> io::Result<Self> {
        let (questions, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        // Never joined: the process can end while an engine hangs.
        thread::Builder::new().name("container-engine".to_owned()).spawn(move || {
            while asked.recv().is_ok() {
                if answer.send(list(&socket)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }
}

fn list(socket: &Path) -> Answer {
    parse(&http::get(socket, LIST, TIMEOUT)?).map_err(AskError::Json)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    image: Option<String>,
}

/// Takes the engines' list of containers apart.
fn parse(body: &[u8]) -> Result<Names, serde_json::Error> {
    let listed: Vec<Listed> = serde_json::from_slice(body)?;
    Ok(listed
        .into_iter()
        .map(|listed| (listed.id, Named { name: own_name(&listed.names), image: listed.image.unwrap_or_default() }))
        .collect())
}

/// The container's name without the slash that Docker puts before it. Names with a second slash are what other containers call it
/// by a link.
fn own_name(names: &Option<Vec<String>>) -> String {
    let mut names = names.iter().flatten().map(|name| name.strip_prefix('/').unwrap_or(name));
    names.find(|name| !name.contains('/')).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn lists_of_docker_and_podman_are_taken_apart() {
        // As Docker 28 gives it, shortened.
        let docker = r#"[{"Id":"aa","Names":["/db/link","/web"],"Image":"nginx:1.27","ImageID":"sha256:1","Command":"x",
            "Created":1720000000,"Ports":[{"PrivatePort":80,"Type":"tcp"}],"Labels":{},"State":"running"},
            {"Id":"bb","Names":null,"Image":null}]"#;
        let names = parse(docker.as_bytes()).unwrap();
        assert_eq!(names["aa"], Named { name: "web".into(), image: "nginx:1.27".into() });
        assert_eq!(names["bb"], Named::default());
        let podman = r#"[{"Id":"cc","Names":["db"],"Image":"docker.io/library/postgres:17"}]"#;
        assert_eq!(parse(podman.as_bytes()).unwrap()["cc"].name, "db");
        assert!(parse(b"[]").unwrap().is_empty());
    }

    #[test]
    fn an_engine_is_asked_anew_when_it_is_due_and_never_while_it_owes_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        // It takes connections and says nothing.
        let _listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let mut engine = Engine::new(dir.path().join("sock"));
        let now = Instant::now();
        assert!(!engine.ask_if_due(false, now), "there is no container");
        assert!(engine.ask_if_due(true, now));
        assert!(!engine.ask_if_due(true, now + REFRESH));
        engine.take_answer(Duration::ZERO, now + TIMEOUT);
        assert!(engine.failure.is_none());
        engine.take_answer(Duration::ZERO, now + TIMEOUT + MOMENT);
        assert!(engine.failure.as_ref().is_some_and(|failure| failure.reason.contains("in time")));

        let mut engine = Engine::new(dir.path().join("nowhere"));
        assert!(engine.ask_if_due(true, now));
        engine.take_answer(PATIENCE, now);
        assert!(engine.failure.as_ref().is_some_and(|failure| failure.absent));
        assert!(!engine.ask_if_due(true, now + RETRY - MOMENT));
        assert!(engine.ask_if_due(false, now + RETRY));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for body in ["", "{}", "[1]", r#"[{"Names":[]}]"#, r#"[{"Id":5}]"#, "null", "[{"] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
