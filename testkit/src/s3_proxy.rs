//! A proxy before an S3 store, for what a store or the way to it does to requests.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What happens to requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Fault {
    /// They pass.
    Nothing,
    /// Each is answered 500.
    Refuse,
    /// One in so many is answered 500.
    RefuseOneIn(u64),
    /// None is passed on or answered until the fault ends.
    Silence,
    /// Each is passed on and done, and its answer never comes.
    LoseAnswers,
}

/// A proxy that passes requests on as they are, signature included, or does them harm.
#[derive(Debug)]
pub struct S3Proxy {
    /// Host and port that clients connect to.
    pub endpoint: String,
    fault: watch::Sender<S3Fault>,
    state: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    harmed: AtomicU64,
}

#[derive(Debug, Clone)]
struct Proxied {
    target: String,
    fault: watch::Receiver<S3Fault>,
    counts: Arc<Counts>,
}

impl S3Proxy {
    /// Starts a proxy before the store at `target`, a host and port.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = listener.local_addr().expect("bound").to_string();
        let (sender, fault) = watch::channel(S3Fault::Nothing);
        let state = Arc::new(Counts::default());
        let router = Router::new().fallback(serve).with_state(Proxied { target, fault, counts: Arc::clone(&state) });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, fault: sender, state }
    }

    /// What happens to requests from now on.
    pub fn set(&self, fault: S3Fault) {
        self.fault.send_replace(fault);
    }

    /// How many requests have come to harm so far.
    #[must_use]
    pub fn harmed(&self) -> u64 {
        self.state.harmed.load(Ordering::Relaxed)
    }
}

async fn serve(State(mut proxied): State<Proxied>, request: Request) -> Response {
    let number = proxied.counts.requests.fetch_add(1, Ordering::Relaxed);
    let fault = *proxied.fault.borrow_and_update();
    let is_harmed = match fault {
        S3Fault::Nothing => false,
        S3Fault::RefuseOneIn(many) => number % many == 0,
        _ => true,
    };
    if !is_harmed {
        return pass_on(&proxied.target, request).await;
    }
    proxied.counts.harmed.fetch_add(1, Ordering::Relaxed);
    if fault == S3Fault::LoseAnswers {
        pass_on(&proxied.target, request).await;
    }
    if matches!(fault, S3Fault::LoseAnswers | S3Fault::Silence) {
        let _ = proxied.fault.wait_for(|present| *present != fault).await;
    }
    (StatusCode::INTERNAL_SERVER_ERROR, "<Error><Code>InternalError</Code></Error>").into_response()
}

async fn pass_on(target: &str, request: Request) -> Response {
    let answer = async {
        let stream = TcpStream::connect(target).await.ok()?;
        let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        sender.send_request(request).await.ok()
    };
    match answer.await {
        Some(response) => response.map(Body::new),
        None => StatusCode::BAD_GATEWAY.into_response(),
    }
}
