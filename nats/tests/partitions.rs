//! Streams, members and partition readers against a real broker.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use plimsoll_nats::{
    Batch, Client, Column, HostId, Incarnation, Name, NatsConfig, PartitionId, Sequence,
    client::MemberId,
    partition_group::PartitionGroup,
    reader::{ReaderEvent, Start, StartError, StartSource},
    streams, subject,
    testing::{Proxy, Swallow, TestServer, eventually},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

/// Positions that a test's members share, as the lake's are shared.
#[derive(Clone, Default)]
struct SharedPositions(Arc<Mutex<BTreeMap<PartitionId, Sequence>>>);

impl SharedPositions {
    fn of(&self, partition: PartitionId) -> Sequence {
        self.0.lock().expect("no panic").get(&partition).copied().unwrap_or_default()
    }

    fn advance(&self, partition: PartitionId, to: Sequence) {
        self.0.lock().expect("no panic").insert(partition, to);
    }
}

impl StartSource for SharedPositions {
    async fn start(&self, partition: PartitionId, _: Incarnation) -> Result<Start, StartError> {
        Ok(Start::After(self.of(partition)))
    }
}

struct Member {
    events: mpsc::Receiver<ReaderEvent>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Member {
    fn join(server: &TestServer, client: &Client, id: &str, positions: &SharedPositions) -> Self {
        let (sender, events) = mpsc::channel(64);
        let shutdown = CancellationToken::new();
        let group = PartitionGroup::new(client, &server.config(), "test", MemberId::from(id), positions.clone());
        let stop = shutdown.clone();
        let task = tokio::spawn(group.run(sender, stop));
        Self { events, shutdown, task }
    }

    /// The next message, or none when the reader says nothing within a moment that has no message due.
    async fn next_message(&mut self) -> (PartitionId, Sequence, Batch) {
        loop {
            let event =
                tokio::time::timeout(LIMIT, self.events.recv()).await.expect("in time").expect("a running member");
            if let ReaderEvent::Message(message) = event {
                let subject = subject::MetricSubject::parse(message.subject()).expect("a metric subject");
                assert_eq!(subject.partition, message.partition);
                let batch = Batch::decode(&subject.host, &subject.measurement, message.headers(), message.payload());
                return (message.partition, message.sequence, batch.expect("decodes"));
            }
        }
    }

    async fn leave(mut self) {
        self.shutdown.cancel();
        while self.events.recv().await.is_some() {}
        self.task.await.expect("ends");
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

async fn publish(client: &Client, host: &str, seq: u64) {
    let batch = Batch {
        host: HostId::parse(host).expect("host"),
        measurement: name("demo"),
        epoch: ulid::Ulid::nil(),
        seq,
        times: vec![1],
        tags: BTreeMap::new(),
        fields: BTreeMap::from([(name("x"), Column::Integer(vec![Some(1)]))]),
    };
    let subject = subject::metrics(&batch.host, &batch.measurement);
    client.jetstream.publish(subject, batch.encode().into()).await.expect("sent").await.expect("stored");
}

#[tokio::test]
async fn declaring_again_changes_nothing_and_keeps_the_messages() {
    let server = TestServer::start().await;
    let client = server.client().await;
    publish(&client, "h", 1).await;
    let (before, life) = streams::metrics(&client).await.expect("there");
    streams::declare(&client, &server.config()).await.expect("declares again");
    let half = NatsConfig { metrics_max_bytes: Some(256 * 1024 * 1024), ..server.config() };
    streams::declare(&client, &half).await.expect("updates");
    let (after, same) = streams::metrics(&client).await.expect("there");
    assert_eq!(life, same, "updated, not recreated");
    assert_eq!(after.cached_info().state.messages, 1);
    assert_eq!(after.cached_info().config.max_bytes, before.cached_info().config.max_bytes / 2);

    let untold = NatsConfig { metrics_max_bytes: None, ..server.config() };
    streams::declare(&client, &untold).await.expect("declares");
    let (kept, _) = streams::metrics(&client).await.expect("there");
    assert_eq!(
        kept.cached_info().config.max_bytes,
        256 * 1024 * 1024,
        "a service that is told no size leaves it alone"
    );
}

#[tokio::test]
async fn live_subscribers_see_public_subjects_and_the_stream_holds_partitions() {
    use futures_util::StreamExt;
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut live = client.nats.subscribe("plimsoll.metrics.*.demo").await.expect("subscribes");
    client.nats.flush().await.expect("flushes");
    publish(&client, "web-1", 1).await;
    assert_eq!(live.next().await.expect("a message").subject.as_str(), "plimsoll.metrics.web-1.demo");
    let (stream, _) = streams::metrics(&client).await.expect("there");
    let stored = stream.direct_get(1).await.expect("stored");
    let parsed = subject::MetricSubject::parse(&stored.subject).expect("a stored subject");
    assert_eq!(parsed.public(), "plimsoll.metrics.web-1.demo");
}

#[tokio::test]
async fn a_wiped_stream_has_a_later_life() {
    let mut server = TestServer::start().await;
    let (_, before) = streams::metrics(&server.client().await).await.expect("there");
    server.kill();
    server.start_again().await;
    let (_, kept) = streams::metrics(&server.client().await).await.expect("there");
    assert_eq!(before, kept, "a restart is the same life");
    server.wipe();
    server.start_again().await;
    let (_, after) = streams::metrics(&server.client().await).await.expect("there");
    assert!(after > before);
}

#[tokio::test]
async fn one_member_reads_everything_from_the_position_on() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for seq in 1..=5 {
        publish(&client, "h", seq).await;
    }
    let positions = SharedPositions::default();
    let mut first = Member::join(&server, &client, "a", &positions);
    let mut partition = None;
    for seq in 1..=5 {
        let (of, at, batch) = first.next_message().await;
        assert_eq!((at.0, batch.seq), (seq, seq));
        partition = Some(of);
    }
    // Three were committed, all were delivered, none acknowledged.
    positions.advance(partition.expect("read some"), Sequence(3));
    first.leave().await;
    let mut second = Member::join(&server, &client, "b", &positions);
    assert_eq!(second.next_message().await.1, Sequence(4), "begins right after the position");
    assert_eq!(second.next_message().await.1, Sequence(5));
    publish(&client, "h", 6).await;
    assert_eq!(second.next_message().await.1, Sequence(6));
    second.leave().await;
}

#[tokio::test]
async fn a_dead_member_is_replaced_and_nothing_is_skipped() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let positions = SharedPositions::default();
    let mut first = Member::join(&server, &server.client().await, "a", &positions);
    publish(&client, "h", 1).await;
    assert_eq!(first.next_message().await.2.seq, 1);
    // Dies without leaving: neither heartbeat nor pull is heard of again, nor was the message contained.
    first.task.abort();
    drop(first);
    let died = tokio::time::Instant::now();
    let mut second = Member::join(&server, &client, "b", &positions);
    publish(&client, "h", 2).await;
    assert_eq!(second.next_message().await.2.seq, 1, "what was delivered and not contained comes again");
    assert_eq!(second.next_message().await.2.seq, 2);
    assert!(died.elapsed() < Duration::from_secs(10), "replaced after {:?}", died.elapsed());
    second.leave().await;
}

#[tokio::test]
async fn two_members_share_the_partitions_and_one_that_leaves_is_replaced() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let positions = SharedPositions::default();
    let mut first = Member::join(&server, &client, "a", &positions);
    let mut second = Member::join(&server, &client, "b", &positions);
    let hosts: Vec<String> = (0..64).map(|n| format!("h{n}")).collect();
    for host in &hosts {
        publish(&client, host, 1).await;
    }
    let mut read: BTreeMap<&str, BTreeSet<(PartitionId, Sequence)>> = BTreeMap::new();
    eventually("every host read, by two members", Duration::from_secs(30), async || {
        for (id, member) in [("a", &mut first), ("b", &mut second)] {
            while let Ok(event) = member.events.try_recv() {
                if let ReaderEvent::Message(message) = event {
                    // Each commits at once what it reads.
                    if positions.of(message.partition) < message.sequence {
                        positions.advance(message.partition, message.sequence);
                        read.entry(id).or_default().insert((message.partition, message.sequence));
                    }
                }
            }
        }
        let all: BTreeSet<_> = read.values().flatten().collect();
        (all.len() == hosts.len()).then_some(())
    })
    .await;
    // The assignment has settled: what comes now is read by both.
    let partitions_of = |id: &str, read: &BTreeMap<&str, BTreeSet<(PartitionId, Sequence)>>| -> BTreeSet<PartitionId> {
        read.get(id).into_iter().flatten().map(|(partition, _)| *partition).collect()
    };
    read.clear();
    for host in &hosts {
        publish(&client, host, 2).await;
    }
    for _ in &hosts {
        tokio::select! {
            (partition, sequence, _) = first.next_message() => { read.entry("a").or_default().insert((partition, sequence)); }
            (partition, sequence, _) = second.next_message() => { read.entry("b").or_default().insert((partition, sequence)); }
        }
    }
    let (of_first, of_second) = (partitions_of("a", &read), partitions_of("b", &read));
    assert!(of_first.is_disjoint(&of_second), "{of_first:?} {of_second:?}");
    assert_eq!((of_first.len(), of_second.len()), (8, 8));
    for (partition, sequence) in read.values().flatten() {
        if positions.of(*partition) < *sequence {
            positions.advance(*partition, *sequence);
        }
    }

    first.leave().await;
    for host in &hosts {
        publish(&client, host, 3).await;
    }
    for _ in &hosts {
        assert_eq!(second.next_message().await.2.seq, 3);
    }
    second.leave().await;
}

/// The broker counts what it has sent as delivered, and the pin outlives a short cut.
#[tokio::test]
async fn what_a_cut_connection_swallowed_is_read_again() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let proxy = Proxy::start(server.url()).await;
    let config = NatsConfig { url: proxy.url.clone(), ..server.config() };
    let cut_off = Client::connect(&config, "cut-off", &CancellationToken::new()).await.expect("connects");
    let positions = SharedPositions::default();
    let mut member = Member::join(&server, &cut_off, "a", &positions);
    let (stream, _) = streams::metrics(&client).await.expect("there");
    for seq in 1..=5 {
        publish(&client, "h", seq).await;
        let (partition, sequence, batch) = member.next_message().await;
        assert_eq!(batch.seq, seq);
        positions.advance(partition, sequence);
    }
    proxy.swallow(Swallow::Answers);
    for seq in 6..=25 {
        publish(&client, "h", seq).await;
    }
    eventually("the broker to believe that it has delivered some", LIMIT, async || {
        let mut consumers = std::pin::pin!(stream.consumers());
        while let Some(Ok(info)) = futures_util::StreamExt::next(&mut consumers).await {
            if info.delivered.stream_sequence > 5 {
                return Some(());
            }
        }
        None
    })
    .await;
    proxy.cut();
    publish(&client, "h", 26).await;
    for seq in 6..=26 {
        let (partition, sequence, batch) = member.next_message().await;
        assert_eq!(batch.seq, seq, "nothing is skipped");
        positions.advance(partition, sequence);
    }
    member.leave().await;
}

#[tokio::test]
async fn a_stream_that_ends_before_the_position_is_not_read() {
    let server = TestServer::start().await;
    let client = server.client().await;
    publish(&client, "h", 1).await;
    let positions = SharedPositions::default();
    PartitionId::all().for_each(|partition| positions.advance(partition, Sequence(7)));
    let mut member = Member::join(&server, &client, "a", &positions);
    // Two heartbeats: time enough for the readers to have begun, had they not refused.
    tokio::time::sleep(2 * plimsoll_nats::members::HEARTBEAT).await;
    assert!(member.events.try_recv().is_err(), "rows that may be new are not passed over in silence");
    positions.0.lock().expect("no panic").clear();
    assert_eq!(member.next_message().await.2.seq, 1);
    member.leave().await;
}

#[tokio::test]
async fn readers_survive_a_broker_that_restarts_and_one_that_is_wiped() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    let positions = SharedPositions::default();
    let mut member = Member::join(&server, &client, "a", &positions);
    publish(&client, "h", 1).await;
    let (partition, sequence, _) = member.next_message().await;
    positions.advance(partition, sequence);
    server.kill();
    server.start_again().await;
    eventually("the connection", LIMIT, async || client.is_connected().then_some(())).await;
    publish(&client, "h", 2).await;
    assert_eq!(member.next_message().await.2.seq, 2);

    server.wipe();
    server.start_again().await;
    positions.advance(partition, Sequence(0));
    let client = server.client().await;
    publish(&client, "h", 3).await;
    let (_, sequence, batch) = member.next_message().await;
    assert_eq!((sequence.0, batch.seq), (1, 3), "the new life counts from 1");
    member.leave().await;
}
