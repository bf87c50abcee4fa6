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

use rustix::io::Errno;

use crate::collectors::CollectError;

type Answer = Result<Space, Errno>;
type Ask = fn(&str) -> Answer;

/// How full a file system is, in blocks and inodes.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Size of a block.
    pub block_bytes: u64,
    /// All blocks.
    pub blocks: u64,
    /// Those that nothing uses.
    pub free_blocks: u64,
    /// Those of them that programs without privileges can use.
    pub available_blocks: u64,
    /// All inodes; 0 where the file system has no fixed number.
    pub inodes: u64,
    /// Those that nothing uses.
    pub free_inodes: u64,
    /// The number of the device that the path belongs to.
    pub device: u64,
}

/// What a file system said.
#[derive(Debug, Clone, Copy)]
pub enum Reply {
    /// How full it is.
    Space(Space),
    /// Nothing yet.
    Hangs,
    /// An error.
    Refuses(Errno),
}

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
    /// Asks by statvfs and stat, waiting at most `timeout` for each answer.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self::asking(timeout, ask)
    }

    fn asking(timeout: Duration, ask: Ask) -> Self {
        Self { timeout, ask, worker: None, hanging: HashMap::new(), refusing: HashMap::new() }
    }

    /// Forgets the paths that are no longer of interest.
    pub fn keep(&mut self, mut of_interest: impl FnMut(&str) -> bool) {
        self.hanging.retain(|path, _| of_interest(path));
        self.refusing.retain(|path, _| of_interest(path));
    }

    /// What the file system at `path` says. That it hangs or refuses is logged once, until that changes.
    ///
    /// Fails when no thread can be started.
    pub fn probe(&mut self, path: &str) -> Result<Reply, CollectError> {
        if self.still_hangs(path) {
            return Ok(Reply::Hangs);
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
                tracing::warn!(mountpoint = path, "file system does not answer, its size is unknown until it does");
                self.hanging.insert(path.to_owned(), worker);
                Ok(Reply::Hangs)
            }
            Err(_) => Ok(Reply::Hangs),
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

    fn report(&mut self, path: &str, answer: Answer) -> Reply {
        match answer {
            Ok(space) => {
                self.refusing.remove(path);
                Reply::Space(space)
            }
            Err(error) => {
                if self.refusing.insert(path.to_owned(), error) != Some(error) {
                    tracing::warn!(mountpoint = path, %error, "file system cannot be asked how full it is");
                }
                Reply::Refuses(error)
            }
        }
    }
}

fn ask(path: &str) -> Answer {
    let space = rustix::fs::statvfs(path)?;
    Ok(Space {
        block_bytes: space.f_frsize,
        blocks: space.f_blocks,
        free_blocks: space.f_bfree,
        available_blocks: space.f_bavail,
        inodes: space.f_files,
        free_inodes: space.f_ffree,
        device: rustix::fs::stat(path)?.st_dev,
    })
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

    fn answer(path: &str) -> Answer {
        match path {
            "/hangs" => drop(WOKEN.wait_while(HANGS.lock().unwrap(), |hangs| *hangs).unwrap()),
            "/refuses" => return Err(Errno::ACCESS),
            _ => {}
        }
        ask("/")
    }

    fn answers(prober: &mut Prober, path: &str) -> bool {
        matches!(prober.probe(path).unwrap(), Reply::Space(_))
    }

    #[test]
    fn a_hanging_file_system_holds_up_no_other_and_is_asked_until_it_answers() {
        let mut prober = Prober::asking(Duration::from_millis(50), answer);
        assert!(answers(&mut prober, "/"));
        for _ in 0..20 {
            assert!(matches!(prober.probe("/hangs").unwrap(), Reply::Hangs));
            assert!(answers(&mut prober, "/"));
            assert!(matches!(prober.probe("/refuses").unwrap(), Reply::Refuses(Errno::ACCESS)));
        }
        assert_eq!(prober.hanging.len(), 1, "one thread is left to it, however often it is asked");

        *HANGS.lock().unwrap() = false;
        WOKEN.notify_all();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !answers(&mut prober, "/hangs") {
            assert!(Instant::now() < deadline, "it never answers again");
            std::thread::yield_now();
        }
        assert!(prober.hanging.is_empty());
    }

    #[test]
    fn a_path_of_no_interest_is_forgotten() {
        let mut prober = Prober::asking(Duration::from_millis(50), answer);
        assert!(!answers(&mut prober, "/refuses"));
        assert_eq!(prober.refusing.len(), 1);
        prober.keep(|path| path != "/refuses");
        assert!(prober.refusing.is_empty());
    }
}
