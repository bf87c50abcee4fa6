//! A fleet of members on a broker and a lake, and the account of its rows.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use plimsoll_lake::{Access, Lake};
use plimsoll_nats::{Client, NatsConfig, streams, subject::PARTITIONS, testing::eventually};
use plimsoll_testkit::{Account, LakePlace, LakeView, account};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    member::Member,
    publisher::{HOSTS, Publisher},
    support::{STORED_ROWS, known_rows},
};

/// Patience for what takes a takeover or two, beside other tests.
pub const LIMIT: Duration = Duration::from_secs(90);
/// How soon partitions are shared anew, at the latest. Held in `make chaos`, whose tests run one at a time.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// Pause between looks at a lake that others work on.
const LOOK: Duration = Duration::from_millis(250);

/// How long members are killed, where `make chaos` says so.
pub fn chaos() -> Option<Duration> {
    let seconds = std::env::var("PLIMSOLL_CHAOS_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("PLIMSOLL_CHAOS_SECONDS: expected a number of seconds")))
}

/// How long a fault goes on, beyond the one time that is always: a quarter of what `make chaos` says for kills.
pub fn length() -> Duration {
    chaos().unwrap_or_default() / 4
}

/// Randomness that a failed test can be repeated with.
pub fn seeded() -> StdRng {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// A moment within a span, out of step with whatever goes on.
pub async fn random_moment(random: &mut StdRng, within: Duration) {
    tokio::time::sleep(within.mul_f64(random.random_range(0.0..1.0))).await;
}

/// Members that read from one broker into one lake.
pub struct Fleet {
    pub client: Client,
    pub place: LakePlace,
    pub members: Vec<Member>,
    variables: Vec<(&'static str, String)>,
    view: LakeView,
}

impl Fleet {
    /// A fleet without members. `place` is where this test looks at the lake.
    pub fn new(nats: &NatsConfig, client: Client, place: LakePlace) -> Self {
        let mut variables = place.variables();
        variables.extend([
            ("PLIMSOLL_NATS__URL", nats.url.clone()),
            ("PLIMSOLL_NATS__REPLICAS", nats.replicas.to_string()),
            (
                "PLIMSOLL_NATS__METRICS_MAX_BYTES",
                nats.metrics_max_bytes.unwrap_or(streams::METRICS_MAX_BYTES).to_string(),
            ),
            ("PLIMSOLL_INGEST__COMMIT_INTERVAL", "500ms".to_owned()),
        ]);
        let view = LakeView::new(place.config());
        Self { client, place, members: Vec::new(), variables, view }
    }

    /// Sets a variable of members that are started from now on.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Lets members that are started from now on see the lake at another place.
    pub fn with_place_of_members(mut self, place: &LakePlace) -> Self {
        self.variables.extend(place.variables());
        self
    }

    pub fn variables(&self) -> &[(&'static str, String)] {
        &self.variables
    }

    /// Starts members until there are so many.
    pub fn grow(&mut self, members: usize) {
        while self.members.len() < members {
            self.members.push(Member::start(&self.variables));
        }
    }

    /// Stops members in order until so many are left.
    pub async fn shrink(&mut self, members: usize) {
        for member in self.members.drain(members..) {
            member.stop().await;
        }
    }

    /// Kills one member and starts another in its place.
    pub fn replace(&mut self, index: usize) {
        self.members.swap_remove(index).kill();
        self.grow(self.members.len() + 1);
    }

    /// Waits until the members share all partitions evenly; `since` is when they changed.
    pub async fn settled(&self, since: Instant) {
        let members: Vec<&Member> = self.members.iter().collect();
        settled(&members, since).await;
    }

    /// As [`LakeView::number`] does.
    pub fn number(&mut self, sql: &str) -> Option<i64> {
        self.view.number(sql)
    }

    /// Rows that the lake holds.
    pub fn rows(&mut self) -> i64 {
        self.number("SELECT count(*) FROM lake.known").unwrap_or(0)
    }

    /// Waits until the lake holds so many rows.
    pub async fn holds(&mut self, rows: i64) {
        self.holds_in("lake.known", rows).await;
    }

    /// Waits until a table of the lake holds so many rows.
    pub async fn holds_in(&mut self, table: &str, rows: i64) {
        let sql = format!("SELECT count(*) FROM {table}");
        eventually("the rows", LIMIT, async || {
            if self.number(&sql).unwrap_or(0) >= rows {
                return Some(());
            }
            tokio::time::sleep(LOOK).await;
            None
        })
        .await;
    }

    /// Waits until members commit what is sent now.
    pub async fn works(&mut self, publisher: &Publisher) {
        self.holds(publisher.sent() + HOSTS as i64).await;
    }

    /// Ends the sending and the fleet in order, and counts what became of the rows.
    pub async fn account(mut self, fault: &str, publisher: Publisher) -> Account {
        let rows_a_host = publisher.finish().await;
        let sent = rows_a_host * HOSTS as i64;
        self.holds(sent).await;
        self.shrink(0).await;
        self.count(fault, rows_a_host).await
    }

    /// Counts what became of the rows.
    pub async fn count(&self, fault: &str, rows_a_host: i64) -> Account {
        let lake = Lake::open(&self.place.config(), Access::Read).expect("the lake can be attached");
        let (once, lost, doubled) = account::compare(&lake, &known_rows(HOSTS, rows_a_host), STORED_ROWS);
        let (orphans, missing) = account::files(&lake, self.place.data_path());
        assert_eq!(missing, 0, "files that the catalog names are not there");
        let dead = self.client.jetstream.get_stream(streams::DEAD).await.expect("there").cached_info().state.messages;
        let sent = rows_a_host * HOSTS as i64;
        Account { fault: fault.to_owned(), sent, once, lost, doubled, dead, orphans }
    }
}

/// Waits until each partition is read by one of these members and none reads more than its share; `since` is when they changed.
pub async fn settled(members: &[&Member], since: Instant) {
    let share = usize::from(PARTITIONS).div_ceil(members.len());
    eventually("partitions to be shared", LIMIT, async || {
        let mut read = BTreeSet::new();
        let mut readings = 0;
        for member in members {
            let partitions = member.partitions().await.filter(|partitions| partitions.len() <= share)?;
            readings += partitions.len();
            read.extend(partitions);
        }
        (read.len() == usize::from(PARTITIONS) && readings == read.len()).then_some(())
    })
    .await;
    let taken = since.elapsed();
    assert!(chaos().is_none() || taken <= SETTLED_WITHIN, "partitions were shared after {taken:?}");
}
