//! Asks file systems how full they are without waiting for one that hangs.
//!
//! Questions go to a thread. When an answer does not come in time, that thread is left to the file system that holds it,
//! and another takes its place; so at most one thread a hanging file system exists. They are never joined: the process can
//! end while they hang.

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    time::Duration,
};

use rustix::{fs::StatVfs, io::Errno};

use crate::collectors::CollectError;

type Answer = Result<StatVfs, Errno>;
type Ask = fn(&str) -> Answer;

/// Asks each path in turn.
#[derive(Debug)]
pub struct Prober {
    timeout: Duration,
    ask: Ask,
    worker: Option<Worker>,
    /// The threads that hang, by the path that they hang on.
    hanging: HashMap<String, Worker>,
    /// The paths that have been reported as refusing, so that each is reported once.
    refusing: HashMap<String, Errno>,
}

#[derive(Debug)]
struct Worker {
    questions: SyncSender<String>,
    answers: Receiver<Answer>,
}

impl Prober {
    /// Asks by statvfs, waiting at most `timeout` for each answer.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self::asking(timeout, |path| rustix::fs::statvfs(path))
    }

    fn asking(timeout: Duration, ask: Ask) -> Self {
        Self { timeout, ask, worker: None, hanging: HashMap::new(), refusing: HashMap::new() }
    }

    /// Forgets the paths that are no longer of interest.
    pub fn keep(&mut self, mut of_interest: impl FnMut(&str) -> bool) {
        self.hanging.retain(|path, _| of_interest(path));
        self.refusing.retain(|path, _| of_interest(path));
    }

    /// What the file system at `path` says; none when it hangs or refuses, which is logged once until it changes.
    ///
    /// Fails when no thread can be started.
    pub fn probe(&mut self, path: &str) -> Result<Option<StatVfs>, CollectError> {
        if self.still_hangs(path) {
            return Ok(None);
        }
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start(self.ask).map_err(|source| CollectError::Thread { path: path.into(), source })?,
        };
        // The worker has answered everything before, so its one place is free. One that has died is made anew next time.
        let asked = worker.questions.try_send(path.to_owned()).is_ok();
        match worker.answers.recv_timeout(self.timeout) {
            Ok(answer) => {
                self.worker = Some(worker);
                Ok(self.report(path, answer))
            }
            Err(RecvTimeoutError::Timeout) if asked => {
                tracing::warn!(mountpoint = path, "file system does not answer, it is left out until it does");
                self.hanging.insert(path.to_owned(), worker);
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }

    fn still_hangs(&mut self, path: &str) -> bool {
        let Some(worker) = self.hanging.get(path) else {
            return false;
        };
        if matches!(worker.answers.try_recv(), Err(TryRecvError::Empty)) {
            return true;
        }
        tracing::info!(mountpoint = path, "file system answers again");
        let worker = self.hanging.remove(path);
        self.worker = self.worker.take().or(worker);
        false
    }

    fn report(&mut self, path: &str, answer: Answer) -> Option<StatVfs> {
        match answer {
            Ok(space) => {
                self.refusing.remove(path);
                Some(space)
            }
            Err(error) => {
                if self.refusing.insert(path.to_owned(), error) != Some(error) {
                    tracing::warn!(mountpoint = path, %error, "file system cannot be asked how full it is");
                }
                None
            }
        }
    }
}

impl Worker {
    fn start(ask: Ask) -> std::io::Result<Self> {
        let (questions, asked) = sync_channel::<String>(1);
        let (answer, answers) = sync_channel(1);
        std::thread::Builder::new().name("statvfs".to_owned()).spawn(move || {
            while let Ok(path) = asked.recv() {
                if answer.send(ask(&path)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Condvar, Mutex},
        time::Instant,
    };

    use super::*;

    static HANGS: Mutex<bool> = Mutex::new(true);
    static WOKEN: Condvar = Condvar::new();

    fn ask(path: &str) -> Answer {
        match path {
            "/hangs" => drop(WOKEN.wait_while(HANGS.lock().unwrap(), |hangs| *hangs).unwrap()),
            "/refuses" => return Err(Errno::ACCESS),
            _ => {}
        }
        rustix::fs::statvfs("/")
    }

    #[test]
    fn a_hanging_file_system_is_left_out_until_it_answers() {
        let mut prober = Prober::asking(Duration::from_millis(50), ask);
        assert!(prober.probe("/").unwrap().is_some());
        assert!(prober.probe("/hangs").unwrap().is_none());
        let start = Instant::now();
        for _ in 0..20 {
            assert!(prober.probe("/hangs").unwrap().is_none());
            assert!(prober.probe("/").unwrap().is_some());
            assert!(prober.probe("/refuses").unwrap().is_none());
        }
        // Waiting for it again would have taken 20 times 50 ms.
        assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
        assert_eq!(prober.hanging.len(), 1);

        *HANGS.lock().unwrap() = false;
        WOKEN.notify_all();
        let deadline = Instant::now() + Duration::from_secs(10);
        while prober.probe("/hangs").unwrap().is_none() {
            assert!(Instant::now() < deadline, "it never answers again");
            std::thread::yield_now();
        }
        assert!(prober.hanging.is_empty());
    }

    #[test]
    fn a_path_of_no_interest_is_forgotten() {
        let mut prober = Prober::asking(Duration::from_millis(50), ask);
        assert!(prober.probe("/refuses").unwrap().is_none());
        assert_eq!(prober.refusing.len(), 1);
        prober.keep(|path| path != "/refuses");
        assert!(prober.refusing.is_empty());
    }
}
