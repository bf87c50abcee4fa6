//! Takes the samples of all collectors, tick by tick.
//!
//! One thread turns the wheel: it wakes once for all that is due, reads the hot collectors itself, and tells the threads of the
//! slow ones. What these have within a moment goes to the broker together with the rest. Ticks are multiples of the intervals in
//! wall time.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use plimsoll_nats::now_ms;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{slow::SlowThread, source::Source};
use crate::{
    collectors::{CollectorKind, Pace},
    context::Context,
    outlet::Outlet,
    schedule::{Schedule, Wheel},
};

mod slow;
mod source;

/// How long the samples of a tick wait for those of slow collectors. Whatever takes longer is sent by itself.
const TOGETHER: Duration = Duration::from_millis(20);

/// What every thread holds for as long as it runs.
type Alive = mpsc::Sender<Infallible>;

/// The threads that sample this host. They end when this is dropped.
#[derive(Debug)]
pub struct Sampler {
    stop: Sender<Infallible>,
    ended: mpsc::Receiver<Infallible>,
}

impl Sampler {
    /// Starts to sample the collectors, each at its interval, into the outlet. Fails when a thread cannot be started.
    pub fn start(
        collectors: impl IntoIterator<Item = (CollectorKind, Duration)>,
        context: &Context,
        outlet: &Arc<Outlet>,
    ) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let (alive, ended) = mpsc::channel(1);
        // The hot ones come first: those that may wait must not keep them from the processor.
        let mut collectors: Vec<(CollectorKind, Duration)> = collectors.into_iter().collect();
        collectors.sort_by_key(|(kind, _)| kind.pace == Pace::Slow);
        let wheel = Wheel::new(collectors.iter().map(|(_, interval)| Schedule::new(*interval)).collect());
        let mut turner = Turner { wheel, hot: Vec::new(), slow: Vec::new(), outlet: Arc::clone(outlet), stopped };
        for (kind, _) in collectors {
            let source = Source::new(kind, context.clone());
            match kind.pace {
                Pace::Hot => turner.hot.push(source),
                Pace::Slow => turner.slow.push(SlowThread::start(source, Arc::clone(outlet), alive.clone())?),
            }
        }
        thread::Builder::new().name("sampler".to_owned()).spawn(move || {
            turner.work();
            // Ends the threads of the slow ones.
            drop(turner);
            drop(alive);
        })?;
        Ok(Self { stop, ended })
    }

    /// Samples until `shutdown`, and completes once all threads have ended; never when one of them hangs.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { stop, mut ended } = self;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            _ = ended.recv() => tracing::error!("sampling has ended by itself"),
        }
        drop(stop);
        ended.recv().await;
    }
}

/// What the sampling thread works with.
struct Turner {
    /// The hot collectors' places first, then those of the slow ones.
    wheel: Wheel,
    hot: Vec<Source>,
    slow: Vec<SlowThread>,
    outlet: Arc<Outlet>,
    /// Disconnected when it is time to end.
    stopped: Receiver<Infallible>,
}

impl Turner {
    fn work(&mut self) {
        self.hot.iter_mut().for_each(Source::warm_up);
        let mut due = Vec::with_capacity(self.hot.len() + self.slow.len());
        loop {
            let pause = self.wheel.turn(now_ms(), &mut due);
            let pause = if due.is_empty() { pause } else { self.take(&due) };
            let ended = matches!(self.stopped.recv_timeout(pause), Err(RecvTimeoutError::Disconnected));
            self.outlet.release();
            if ended {
                return;
            }
        }
    }

    /// Reads all that is due before anything is encoded, so that the samples of a tick are of one moment. Returns how long to wait
    /// for the slow ones.
    fn take(&mut self, due: &[(usize, i64)]) -> Duration {
        self.outlet.hold();
        let slow_from = self.hot.len();
        for (place, tick_ms) in due.iter().filter(|(place, _)| *place < slow_from) {
            self.hot[*place].take(*tick_ms);
        }
        source::send(self.hot.iter_mut(), &self.outlet);
        let mut pause = Duration::ZERO;
        for (place, tick_ms) in due.iter().filter(|(place, _)| *place >= slow_from) {
            self.slow[*place - slow_from].take(*tick_ms);
            pause = TOGETHER;
        }
        pause
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{
            Condvar, Mutex,
            atomic::{AtomicU32, Ordering},
        },
        thread::ThreadId,
    };

    use plimsoll_nats::{HostId, Name};
    use tokio::{task::JoinHandle, time::timeout};
    use ulid::Ulid;

    use super::*;
    use crate::{
        buffer::{SharedBuffer, Side},
        collectors::{CollectError, Collector},
        encoder::PayloadLimit,
        message::Lane,
        rows::{Tables, Value},
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    fn kind(
        measurements: &'static [&'static str],
        pace: Pace,
        open: fn(&Context) -> Box<dyn Collector>,
    ) -> CollectorKind {
        CollectorKind { name: measurements[0], measurements, pace, interval: None, open }
    }

    fn start(kinds: &[CollectorKind]) -> (Arc<SharedBuffer>, CancellationToken, JoinHandle<()>) {
        let buffer = Arc::new(SharedBuffer::new(1024 * 1024));
        let host = HostId::parse("h").unwrap();
        let outlet = Outlet::new(host, Ulid::generate(), PayloadLimit::default(), Arc::clone(&buffer));
        let collectors = kinds.iter().map(|kind| (*kind, Duration::from_millis(100)));
        let sampler = Sampler::start(collectors, &Context::default(), &Arc::new(outlet)).unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(sampler.run(shutdown.clone()));
        (buffer, shutdown, task)
    }

    async fn batches(buffer: &SharedBuffer, count: usize) {
        let all = async {
            while buffer.lock().len() < count {
                buffer.filled(Side::Live).await;
            }
        };
        timeout(PATIENCE, all).await.expect("samples go on");
    }

    async fn stop(shutdown: &CancellationToken, task: JoinHandle<()>) {
        shutdown.cancel();
        timeout(PATIENCE, task).await.expect("all threads end").unwrap();
    }

    fn push_load(tables: &mut Tables) {
        let value = || Value::from(1.0);
        let fields = [
            ("load1", value()),
            ("load5", value()),
            ("load15", value()),
            ("runnable_tasks", 1_u64.into()),
            ("tasks", 1_u64.into()),
        ];
        tables.of("load").push(&[], &fields);
    }

    /// Panics at the third reading, fails at the sixth, and does well else.
    struct Troubled(&'static AtomicU32);

    impl Collector for Troubled {
        fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
            let reading = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            push_load(tables);
            assert_ne!(reading, 3, "the collector panics");
            if reading == 6 {
                return Err(CollectError::Read { path: "/proc".into(), source: io::Error::other("it fails") });
            }
            Ok(())
        }
    }

    static HOT_READINGS: AtomicU32 = AtomicU32::new(0);
    static SLOW_READINGS: AtomicU32 = AtomicU32::new(0);

    #[tokio::test]
    async fn a_collector_that_fails_or_panics_is_read_again() {
        for (pace, readings, open) in [
            (Pace::Hot, &HOT_READINGS, (|_| Box::new(Troubled(&HOT_READINGS))) as fn(&Context) -> Box<dyn Collector>),
            (Pace::Slow, &SLOW_READINGS, |_| Box::new(Troubled(&SLOW_READINGS))),
        ] {
            let (buffer, shutdown, task) = start(&[kind(&["load"], pace, open)]);
            batches(&buffer, 8).await;
            stop(&shutdown, task).await;
            // The first reading only gives rates their start; a panic and a failure leave no batch and take no number.
            assert!(readings.load(Ordering::SeqCst) >= 8 + 3);
            let lane = Lane::of_measurement(HostId::parse("h").unwrap(), Name::parse("load").unwrap());
            let seqs: Vec<u64> = buffer.lock().numbers(&lane).iter().map(|number| number.seq).collect();
            assert!(seqs.len() >= 8 && seqs.iter().copied().eq(1..=seqs.len() as u64), "{seqs:?}");
        }
    }

    static THREADS: Mutex<Option<HashSet<ThreadId>>> = Mutex::new(None);

    /// Notes the thread that reads it.
    struct Noting;

    impl Collector for Noting {
        fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
            THREADS.lock().unwrap().get_or_insert_default().insert(thread::current().id());
            push_load(tables);
            Ok(())
        }
    }

    #[tokio::test]
    async fn hot_collectors_share_one_thread() {
        let noting = kind(&["load"], Pace::Hot, |_| Box::new(Noting));
        let (buffer, shutdown, task) = start(&[noting; 5]);
        batches(&buffer, 15).await;
        stop(&shutdown, task).await;
        assert_eq!(THREADS.lock().unwrap().as_ref().unwrap().len(), 1);
    }

    static HANGING: AtomicU32 = AtomicU32::new(0);
    static HANGS: Mutex<bool> = Mutex::new(true);
    static WOKEN: Condvar = Condvar::new();

    struct Hanging;

    impl Collector for Hanging {
        fn collect(&mut self, _: &mut Tables) -> Result<(), CollectError> {
            HANGING.fetch_add(1, Ordering::SeqCst);
            drop(WOKEN.wait_while(HANGS.lock().unwrap(), |hangs| *hangs).unwrap());
            Ok(())
        }
    }

    #[tokio::test]
    async fn one_that_hangs_delays_no_other_and_takes_one_thread() {
        let hanging = kind(&["temperature"], Pace::Slow, |_| Box::new(Hanging));
        let well = [Pace::Hot, Pace::Slow]
            .map(|pace| kind(&["load"], pace, |_| Box::new(Troubled(Box::leak(Box::new(AtomicU32::new(10)))))));
        let (buffer, shutdown, task) = start(&[hanging, well[0], well[1]]);
        batches(&buffer, 10).await;
        assert_eq!(HANGING.load(Ordering::SeqCst), 1);
        *HANGS.lock().unwrap() = false;
        WOKEN.notify_all();
        stop(&shutdown, task).await;
    }
}
