//! Serves HTTP to peers of whom some never finish a request.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Pause before the next connection is accepted when one could not be, as without a free descriptor.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// What bounds the peers of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// Most connections at the same time, WebSockets left out; more wait to be accepted. Default 512.
    pub connections: usize,
    /// Longest time without a whole request head, between two requests too; default 10 s.
    pub head: Duration,
    /// Longest time that the requests under way may take to finish after the end was asked for; default 10 s.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self { connections: 512, head: Duration::from_secs(10), drain: Duration::from_secs(10) }
    }
}

/// Why HTTP cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken or not this machine's.
    #[error("failed to listen on {address}: is another program using it?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Serving broke off.
    #[error("failed to serve HTTP")]
    Serve(#[source] std::io::Error),
}

/// Binds the address. Fails when it is taken.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Serves a router within the default limits until `shutdown`, then finishes the requests under way.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> Result<(), ServeError> {
    serve_within(ServeLimits::default(), listener, router, shutdown).await
}

/// Serves a router until `shutdown`, then finishes the requests under way, as far as that takes no longer than the limit.
///
/// Fails when the socket does not listen any more.
pub async fn serve_within(
    limits: ServeLimits,
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted?,
        };
        connections.spawn(converse(http.clone(), stream, slot, router.clone(), shutdown.clone()));
    }
    // Closed before the drain, so that nobody waits for an answer that will not come.
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::warn!("requests did not end within {} s, leaving them", limits.drain.as_secs());
    }
    Ok(())
}

/// The next connection, as soon as there is room for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Result<(TcpStream, OwnedSemaphorePermit), ServeError> {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Ok((stream, slot)),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused => {}
                ErrorKind::InvalidInput => return Err(ServeError::Serve(error)),
                _ => {
                    tracing::warn!(error = %error, "failed to accept a connection, trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

/// Answers the requests of one connection; after `shutdown` the one under way only. How it breaks off is the peer's business.
async fn converse(
    http: http1::Builder,
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    router: Router,
    shutdown: CancellationToken,
) {
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        biased;
        _ = connection.as_mut() => {}
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    drop(slot);
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
        task::JoinHandle,
        time::{Instant, timeout},
    };

    use super::*;

    const HALF: &[u8] = b"GET / HTTP/1.1\r\nHost: ";
    const WHOLE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const PATIENCE: Duration = Duration::from_secs(30);

    struct Served {
        address: SocketAddr,
        shutdown: CancellationToken,
        server: JoinHandle<Result<(), ServeError>>,
    }

    async fn served(limits: ServeLimits, router: Router) -> Served {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve_within(limits, listener, router, shutdown.clone()));
        Served { address, shutdown, server }
    }

    impl Served {
        async fn send(&self, bytes: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.expect("connects");
            stream.write_all(bytes).await.expect("sent");
            stream
        }

        async fn stop(self) {
            self.shutdown.cancel();
            timeout(PATIENCE, self.server).await.expect("in time").expect("no panic").expect("ends in order");
        }
    }

    /// What the peer says until it closes.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut text)).await.expect("closed in time").expect("read");
        text
    }

    fn hello() -> Router {
        Router::new().route("/", get(|| async { "hello" }))
    }

    #[tokio::test]
    async fn peers_that_finish_no_request_do_not_keep_others_out() {
        let head = Duration::from_millis(200);
        let served = served(ServeLimits { connections: 4, head, ..ServeLimits::default() }, hello()).await;
        let mut halves = Vec::new();
        for _ in 0..8 {
            halves.push(served.send(HALF).await);
        }
        let started = Instant::now();
        let mut whole = served.send(WHOLE).await;
        let told = rest(&mut whole).await;
        assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("hello"), "{told}");
        assert!(started.elapsed() >= head, "no more than four were let in at the same time");
        for mut half in halves {
            assert!(!rest(&mut half).await.contains("200"));
        }
        served.stop().await;
    }

    #[tokio::test]
    async fn requests_under_way_are_finished_and_others_not_awaited() {
        let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, awaited) = (Arc::clone(&entered), Arc::clone(&release));
        let answer = async move || {
            told.notify_one();
            awaited.notified().await;
            "done"
        };
        let router = Router::new().route("/", get(answer));
        let served = served(ServeLimits { drain: Duration::from_millis(500), ..ServeLimits::default() }, router).await;
        let _half = served.send(HALF).await;
        let mut whole = served.send(WHOLE).await;
        entered.notified().await;
        served.shutdown.cancel();
        release.notify_one();
        served.stop().await;
        assert!(rest(&mut whole).await.ends_with("done"));
    }
}
