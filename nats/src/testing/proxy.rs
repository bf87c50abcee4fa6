//! A TCP proxy before a broker, for what a network does to a connection.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What a proxy keeps from arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swallow {
    /// Everything passes.
    Nothing,
    /// What clients say is lost.
    Requests,
    /// What the broker says is lost.
    Answers,
}

/// A TCP proxy that can swallow what either side says, and cut its connections.
#[derive(Debug)]
pub struct Proxy {
    /// Where clients connect to.
    pub url: String,
    swallow: watch::Sender<Swallow>,
    cut: watch::Sender<()>,
}

impl Proxy {
    /// Starts a proxy before the broker at `target`.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("nats://{}", listener.local_addr().expect("bound"));
        let (swallow, swallowed) = watch::channel(Swallow::Nothing);
        let (cut, cuts) = watch::channel(());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(broker) = TcpStream::connect(target.trim_start_matches("nats://")).await else { continue };
                let (mut cuts, swallowed) = (cuts.clone(), swallowed.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let (from_client, to_client) = client.into_split();
                    let (from_broker, to_broker) = broker.into_split();
                    tokio::select! {
                        _ = cuts.changed() => {}
                        () = relay(from_client, to_broker, &swallowed, Swallow::Requests) => {}
                        () = relay(from_broker, to_client, &swallowed, Swallow::Answers) => {}
                    }
                });
            }
        });
        Self { url, swallow, cut }
    }

    /// Swallows from now on.
    pub fn swallow(&self, what: Swallow) {
        self.swallow.send_replace(what);
    }

    /// Cuts every connection; those made from now on are whole.
    pub fn cut(&self) {
        self.swallow(Swallow::Nothing);
        self.cut.send_replace(());
    }
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallowed: &watch::Receiver<Swallow>, what: Swallow) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let swallow = *swallowed.borrow() == what;
        if !swallow && to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
}
