//! Live samples by WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use plimsoll_nats::{Batch, Column, testing::eventually};
use plimsoll_query_api::live::{CAPACITY, MAX_SUBSCRIBERS};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use crate::harness::{Harness, PATIENCE, name};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(harness: &Harness, query: &str) -> Socket {
    let url = format!("{}/ws/live{query}", harness.url.replace("http", "ws"));
    connect_async(url).await.expect("connects").0
}

/// The next text message.
async fn next(socket: &mut Socket) -> Value {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message in time");
        if let Message::Text(text) = message.expect("open").expect("a message") {
            return serde_json::from_str(&text).expect("JSON");
        }
    }
}

/// Waits until so many connections are counted, which is when they receive.
async fn subscribed(harness: &Harness, count: usize) {
    let line = format!("plimsoll_query_api_live_subscribers {count}\n");
    eventually("the subscribers", PATIENCE, async || {
        harness.get("/metrics").await.text().await.expect("text").contains(&line).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_arrive_as_they_are_published() {
    let harness = Harness::start().await;
    let mut all = connect(&harness, "").await;
    let mut some = connect(&harness, "?hosts=db-*,web-2&measurements=c?u").await;
    subscribed(&harness, 2).await;
    harness.publish(&harness.cpu("web-1", 1)).await;
    harness.client.nats.publish("plimsoll.metrics.web-1.cpu", "nonsense".into()).await.expect("sent");
    harness.publish(&Batch { measurement: name("memory"), ..harness.cpu("db-1", 2) }).await;
    harness.publish(&harness.cpu("db-1", 3)).await;
    let first = next(&mut all).await;
    assert_eq!(
        first,
        json!({ "type": "samples", "host": "web-1", "measurement": "cpu", "rows": [{
            "ts": harness.base_ms + 1000,
            "tags": { "core": "0" },
            "fields": { "state": "s1", "switches_total": 9_007_199_254_740_994_i64, "usage_percent": 1.0 },
        }] })
    );
    assert_eq!(next(&mut all).await["measurement"], "memory");
    assert_eq!(next(&mut all).await["host"], "db-1");
    let only = next(&mut some).await;
    assert_eq!((&only["host"], &only["measurement"]), (&json!("db-1"), &json!("cpu")));
    all.send(Message::Ping("x".into())).await.expect("sent");
    let pong = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(Ok(Message::Pong(payload))) = all.next().await {
                return payload;
            }
        }
    });
    assert_eq!(&pong.await.expect("a pong")[..], b"x");
    all.close(None).await.expect("closes");
    subscribed(&harness, 1).await;
    harness.stop().await;
    let end = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(Ok(Message::Close(frame))) = some.next().await {
                return frame;
            }
        }
    });
    assert_eq!(end.await.expect("a close").expect("a reason").code, CloseCode::Away);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_is_told_and_others_feel_nothing() {
    let harness = Harness::start().await;
    let mut slow = connect(&harness, "").await;
    let mut fast = connect(&harness, "").await;
    subscribed(&harness, 2).await;
    // Far more than the buffers of a connection and the channel together hold.
    let batches = CAPACITY as u64 + 3000;
    let text = "x".repeat(10_000);
    for sent in 0..batches {
        let mut batch = harness.cpu("web-1", 0);
        batch.fields.insert(name("state"), Column::Text(vec![Some(text.clone())]));
        batch.fields.insert(name("n"), Column::Integer(vec![Some(sent.cast_signed())]));
        let subject = plimsoll_nats::subject::metrics(&batch.host, &batch.measurement);
        harness.client.nats.publish(subject, batch.encode().into()).await.expect("sent");
        assert_eq!(next(&mut fast).await["rows"][0]["fields"]["n"], sent, "the fast one gets each");
    }
    let (mut got, mut skipped) = (0, 0);
    while skipped == 0 {
        let message = next(&mut slow).await;
        match message["type"].as_str() {
            Some("samples") => got += 1,
            Some("lagged") => skipped = message["skipped"].as_u64().expect("a number"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got + skipped, batches, "what was not sent is told");
    harness.publish(&harness.cpu("web-1", 7)).await;
    assert_eq!(next(&mut slow).await["rows"][0]["fields"]["state"], "s7", "and it goes on with the newest");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused() {
    let harness = Harness::start().await;
    let ask = async |host: Option<&str>, origin: &str| {
        let url = format!("{}/ws/live", harness.url.replace("http", "ws"));
        let mut request = url.into_client_request().expect("a request");
        request.headers_mut().insert("origin", origin.parse().expect("a value"));
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().expect("a value"));
        }
        connect_async(request).await.is_ok()
    };
    assert!(!ask(None, "http://elsewhere.example").await);
    assert!(!ask(Some("elsewhere.example"), "http://elsewhere.example").await, "a name that resolves to this machine");
    assert!(ask(None, &harness.url).await);
    let served = tokio::time::timeout(Duration::from_secs(20), harness.stop());
    served.await.expect("open connections do not hold the service up");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_subscriber_too_many_is_refused() {
    let harness = Harness::start().await;
    let url = format!("{}/ws/live", harness.url.replace("http", "ws"));
    let mut sockets = Vec::new();
    for _ in 0..MAX_SUBSCRIBERS {
        sockets.push(connect(&harness, "").await);
    }
    let Err(Error::Http(refused)) = connect_async(&url).await else { panic!("one too many") };
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"2".parse().expect("text")));
    sockets.pop();
    eventually("a free place", PATIENCE, async || connect_async(&url).await.ok()).await;
    harness.stop().await;
}
