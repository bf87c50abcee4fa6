//! A proxy before PostgreSQL that loses what is worst to lose: the answer to a commit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Enough for a server that does not wait for the disk.
const TIME_TO_COMMIT: Duration = Duration::from_millis(200);

/// A proxy that passes everything on until it is told to lose an answer.
#[derive(Debug)]
pub struct PostgresProxy {
    /// The port on loopback.
    pub port: u16,
    state: Arc<Armed>,
}

#[derive(Debug, Default)]
struct Armed {
    is_armed: AtomicBool,
    lost: AtomicU64,
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
                    let (from_server, to_server) = server.into_split();
                    let losing = tokio::select! {
                        // Looks for a commit before its answer can pass.
                        biased;
                        server = requests(from_client, to_server, &armed) => server,
                        () = answers(from_server, to_client) => None,
                    };
                    if let Some(server) = losing {
                        // It commits what it was told before it notices that nobody is there.
                        tokio::time::sleep(TIME_TO_COMMIT).await;
                        drop(server);
                    }
                });
            }
        });
        Self { port: own, state }
    }

    /// From the next transaction that writes, passes the commit on, loses the answer, and cuts the connection.
    pub fn lose_next_commit(&self) {
        self.state.is_armed.store(true, Ordering::Relaxed);
    }

    /// Answers lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// Passes requests on; returns the way to the server once that has had one whose answer has to be lost, nothing when the client is gone.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, armed: &Armed) -> Option<OwnedWriteHalf> {
    let mut bytes = vec![0; 64 * 1024];
    let mut writes = false;
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let said = &bytes[..count];
        writes |= contains(said, b"INSERT INTO");
        let is_commit = contains(said, b"COMMIT\0") || contains(said, b"COMMIT;");
        let lose = is_commit && writes && armed.is_armed.swap(false, Ordering::Relaxed);
        to.write_all(said).await.ok()?;
        if lose {
            armed.lost.fetch_add(1, Ordering::Relaxed);
            return Some(to);
        }
        writes &= !is_commit;
    }
    None
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
