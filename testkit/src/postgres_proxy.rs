//! A proxy before PostgreSQL that does harm at the worst moment: when a transaction commits.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// How the last message of an answer begins: ReadyForQuery, of six bytes (PostgreSQL's documentation, "Message Formats").
const DONE: &[u8] = b"Z\0\0\0\x05";

/// What happens to the commit of a transaction that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// The connection is cut before PostgreSQL hears of the commit, which so does not come about.
    Cut,
    /// PostgreSQL commits, and its answer is lost with the connection.
    LoseAnswer,
}

/// A proxy that passes everything on until it is told to harm a commit.
#[derive(Debug)]
pub struct PostgresProxy {
    /// The port on loopback.
    pub port: u16,
    state: Arc<Armed>,
}

#[derive(Debug, Default)]
struct Armed {
    /// The fault, and how many commits pass before.
    next: Mutex<Option<(CommitFault, u64)>>,
    harmed: AtomicU64,
}

impl Armed {
    /// What is to happen to a commit that has come.
    fn take(&self) -> Option<CommitFault> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (fault, before) = (*next)?;
        if before > 0 {
            *next = Some((fault, before - 1));
            return None;
        }
        *next = None;
        self.harmed.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }
}

impl PostgresProxy {
    /// Starts a proxy before the server on `port` of loopback.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("bound").port();
        let state = Arc::<Armed>::default();
        let armed = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let armed = Arc::clone(&armed);
                tokio::spawn(async move {
                    let (from_client, to_client) = client.into_split();
                    let (mut from_server, to_server) = server.into_split();
                    let losing = tokio::select! {
                        // Looks for a commit before its answer can pass.
                        biased;
                        server = requests(from_client, to_server, &armed) => server,
                        () = answers(&mut from_server, to_client) => None,
                    };
                    if let Some(server) = losing {
                        swallow_answer(&mut from_server).await;
                        drop(server);
                    }
                });
            }
        });
        Self { port: own, state }
    }

    /// From the next transaction that writes, passes the commit on, loses the answer, and cuts the connection.
    pub fn lose_next_commit(&self) {
        self.harm(CommitFault::LoseAnswer, 0);
    }

    /// Harms the commit of a transaction that writes, once, after so many that pass.
    pub fn harm(&self, fault: CommitFault, after: u64) {
        *self.state.next.lock().unwrap_or_else(PoisonError::into_inner) = Some((fault, after));
    }

    /// Does no further harm; returns whether what it was told last has been done.
    pub fn rest(&self) -> bool {
        self.state.next.lock().unwrap_or_else(PoisonError::into_inner).take().is_none()
    }

    /// Commits harmed so far.
    #[must_use]
    pub fn harmed(&self) -> u64 {
        self.state.harmed.load(Ordering::Relaxed)
    }
}

async fn answers(from: &mut OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = tokio::io::copy(from, &mut to).await;
}

/// Waits until the server has committed and said so.
async fn swallow_answer(from: &mut OwnedReadHalf) {
    let mut answer = Vec::new();
    while let Ok(1..) = from.read_buf(&mut answer).await {
        if answer.len() > DONE.len() && answer[answer.len() - DONE.len() - 1..].starts_with(DONE) {
            return;
        }
    }
}

/// Passes requests on; returns the way to the server once that has had one whose answer has to be lost, nothing when the client is gone
/// or is to be cut off.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, armed: &Armed) -> Option<OwnedWriteHalf> {
    const WRITES: [&[u8]; 4] = [b"INSERT INTO", b"DELETE FROM", b"UPDATE ", b"CREATE TABLE"];
    let mut bytes = vec![0; 64 * 1024];
    let mut writes = false;
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let said = &bytes[..count];
        writes |= WRITES.iter().any(|statement| contains(said, statement));
        let is_commit = contains(said, b"COMMIT\0") || contains(said, b"COMMIT;");
        let fault = if is_commit && writes { armed.take() } else { None };
        if fault == Some(CommitFault::Cut) {
            return None;
        }
        to.write_all(said).await.ok()?;
        if fault == Some(CommitFault::LoseAnswer) {
            return Some(to);
        }
        writes &= !is_commit && !contains(said, b"ROLLBACK");
    }
    None
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
