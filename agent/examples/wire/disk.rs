//! What the stream of the samples takes on the broker's disk.

use std::{fmt::Write as _, fs, io, path::Path};

use plimsoll_nats::{
    Client, HostId, NatsConfig,
    async_nats::HeaderMap,
    batch::{ENCODING_HEADER, ENCODING_ZSTD},
    server::{Server, ServerConfig},
    streams, subject,
};
use tokio_util::sync::CancellationToken;

use crate::{
    FAST,
    encodings::{Encoded, Encoding, encode},
    recording::Recording,
};

/// No less than a stored message takes beside its payload.
const OVERHEAD_BYTES: usize = 256;

/// What is stored of a recording, by encoding.
pub fn table(recording: &Recording) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let points: usize = recording.samples.values().map(|samples| Recording::points(samples)).sum();
    let mut out = "| encoding | messages | bytes a point handed to the stream | bytes a point on disk |\n| --- | ---: | ---: | ---: |\n".to_owned();
    for (name, encoding) in [
        ("as the agent sends it", Encoding::AsSent),
        ("MessagePack", Encoding::Plain),
        ("zstd 1", Encoding::Zstd(1, 0)),
        ("zstd 3", Encoding::Zstd(3, 0)),
    ] {
        let all = recording.samples.iter();
        // The messages of a tick come together, as from an agent.
        let mut messages: Vec<(usize, Encoded)> = all
            .flat_map(|(measurement, samples)| encode(measurement, samples, FAST, encoding).0.into_iter().enumerate())
            .collect();
        messages.sort_by_key(|(tick, _)| *tick);
        let stored = runtime.block_on(store(messages.into_iter().map(|(_, message)| message).collect()));
        let _ = writeln!(
            out,
            "| {name} | {} | {:.2} | {} |",
            stored.messages,
            stored.bytes as f64 / points as f64,
            stored.ratio.map_or_else(
                || "too few for a full block".to_owned(),
                |ratio| format!("{:.2}", stored.bytes as f64 * ratio / points as f64)
            ),
        );
    }
    out
}

struct Stored {
    messages: u64,
    /// As the stream counts them: subjects, headers, payloads and its own.
    bytes: u64,
    /// What full blocks take of that; none when no block became full.
    ratio: Option<f64>,
}

async fn store(messages: Vec<Encoded>) -> Stored {
    // The broker compresses a block when it is full. The blocks of a stream of less than 32 MiB are of 4 MiB.
    let bytes: usize = messages.iter().map(|message| message.payload.len() + OVERHEAD_BYTES).sum();
    let stream_bytes = i64::try_from(bytes * 3 / 2).expect("a few MiB");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store_dir = dir.path().join("store");
    let config =
        ServerConfig { port: None, store_dir: store_dir.clone(), run_dir: dir.path().join("run"), sync_always: false };
    let server = Server::start(&config).await.expect("nats-server starts");
    let config =
        NatsConfig { url: server.url().to_owned(), metrics_max_bytes: Some(stream_bytes), ..NatsConfig::default() };
    let client = Client::connect(&config, "wire", &CancellationToken::new()).await.expect("it connects");
    streams::declare(&client, &config).await.expect("the broker takes the streams");
    let host = HostId::parse("web-01-example-org").expect("a host id");
    let mut sent = 0;
    for message in messages {
        sent += 1;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{host}/{}/01HF7YAT00000000000000000A/{sent}", message.measurement));
        if message.compressed {
            headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
        }
        let subject = subject::metrics(&host, &message.measurement);
        client
            .jetstream
            .publish_with_headers(subject, headers, message.payload.into())
            .await
            .expect("sent")
            .await
            .expect("stored");
    }
    let (stream, _) = streams::metrics(&client).await.expect("the stream is there");
    let state = stream.cached_info().state.clone();
    server.stop().await;
    assert_eq!(state.messages, sent, "the stream keeps every message");
    let (full, last) = blocks(&store_dir).expect("the store can be read");
    Stored { messages: sent, bytes: state.bytes, ratio: (full > 0).then(|| full as f64 / (state.bytes - last) as f64) }
}

/// Bytes of the full blocks of `METRICS`, and of the last one.
fn blocks(store: &Path) -> io::Result<(u64, u64)> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(store.join("jetstream/$G/streams/METRICS/msgs"))? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "blk")) {
            sizes.push((number, path.metadata()?.len()));
        }
    }
    sizes.sort_unstable();
    let last = sizes.pop().map_or(0, |(_, bytes)| bytes);
    Ok((sizes.iter().map(|(_, bytes)| bytes).sum(), last))
}
