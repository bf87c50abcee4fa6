//! What is remembered of one graphics processor between samples.

use std::time::{Duration, Instant};

use plimsoll_nats::event::EventKind;

use super::{
    Identity, Slot,
    reading::{Gauges, Throttling},
};
use crate::{
    collectors::throttle::episode::{Change, Episode},
    events::{Event, EventSink},
};

/// For how long a processor that may be suspended must be idle before it is left alone.
const IDLE: Duration = Duration::from_secs(10);
/// For how long it is then left alone, so that the kernel can suspend it.
const REST: Duration = Duration::from_secs(60);

/// A processor that is or was on the bus.
#[derive(Debug)]
pub struct Card {
    /// Its place on the bus.
    pub address: String,
    /// Who it is, once it has told.
    pub identity: Option<Identity>,
    /// XID errors that this run of the agent has seen; none where they can't be watched.
    pub xids: Option<u64>,
    state: State,
    episode: Episode,
    idle_since: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing is known yet.
    New,
    Answers,
    Suspended,
    /// Idle, and left alone so that it can be suspended.
    Resting {
        until: Instant,
    },
    Lost(String),
    Refused(String),
}

impl Card {
    /// A processor that has not been asked yet.
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            identity: None,
            xids: None,
            state: State::New,
            episode: Episode::default(),
            idle_since: None,
        }
    }

    /// Whether it has ever told who it is.
    pub fn is_known(&self) -> bool {
        self.identity.is_some()
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost(_))
    }

    /// Whether it is suspended.
    pub fn is_suspended(&self) -> bool {
        self.state == State::Suspended
    }

    /// Whether asking it disturbs nobody: neither is it suspended, nor is it to be left alone.
    pub fn may_be_asked(&mut self, slot: &Slot, now: Instant) -> bool {
        if self.is_lost() {
            return true;
        }
        if slot.is_suspended() {
            self.state = State::Suspended;
            self.idle_since = None;
            return false;
        }
        match self.state {
            State::Suspended => {
                self.state = State::New;
                true
            }
            State::Resting { until } if now < until => false,
            State::Answers
                if slot.may_sleep && self.idle_since.is_some_and(|since| now.duration_since(since) >= IDLE) =>
            {
                self.state = State::Resting { until: now + REST };
                self.idle_since = None;
                false
            }
            _ => true,
        }
    }

    /// Takes note of an answer.
    pub fn answered(&mut self, identity: Identity, gauges: &Gauges, now: Instant, events: &EventSink) {
        self.state = State::Answers;
        self.identity = Some(identity);
        self.idle_since = gauges.is_idle().then(|| self.idle_since.unwrap_or(now));
        if let Some(throttling) = &gauges.throttling
            && let Some(change) = self.episode.observe(throttling.slowdown, now)
        {
            events.emit(self.throttling(change, throttling));
        }
    }

    /// Takes note that it is lost, which is an event if it had answered before.
    pub fn lose(&mut self, reason: &str, events: &EventSink) {
        if !self.is_lost()
            && let Some(identity) = &self.identity
        {
            let message = format!("{} at {} is lost: {reason}", identity.name, self.address);
            let event = Event::new(EventKind::GpuLost, &identity.uuid, message);
            events.emit(self.described(event));
        }
        self.state = State::Lost(reason.to_owned());
    }

    /// Takes note that it can't be asked.
    pub fn refuse(&mut self, reason: String) {
        self.state = State::Refused(reason);
    }

    /// Counts XID errors since the last time.
    pub fn count_xids(&mut self, since: Option<u64>) {
        if let Some(since) = since {
            self.xids = Some(self.xids.unwrap_or(0).saturating_add(since));
        }
    }

    /// Why it tells nothing.
    pub fn note(&self) -> Option<String> {
        let address = &self.address;
        match &self.state {
            State::New | State::Answers => None,
            State::Suspended => Some(format!("The graphics processor {address} is suspended and is not woken")),
            State::Resting { .. } => {
                Some(format!("The graphics processor {address} is idle and is left alone, so that it can be suspended"))
            }
            State::Lost(reason) => Some(format!("The graphics processor {address} is lost: {reason}")),
            State::Refused(reason) => Some(format!("The graphics processor {address} can't be asked: {reason}")),
        }
    }

    fn throttling(&self, change: Change, throttling: &Throttling) -> Event {
        let (name, uuid) = self.identity.as_ref().map_or(("", ""), |identity| (&identity.name, &identity.uuid));
        let event = match change {
            Change::Began => {
                let message = format!("{name} at {} began to throttle: {}", self.address, throttling.reasons);
                Event::new(EventKind::ThrottlingBegan, uuid, message).with("reasons", throttling.reasons.as_str())
            }
            Change::Ended(lasted) => {
                let message = format!("{name} at {} throttles no longer", self.address);
                Event::new(EventKind::ThrottlingEnded, uuid, message).with("lasted_seconds", lasted.as_secs_f64())
            }
        };
        self.described(event)
    }

    fn described(&self, event: Event) -> Event {
        let event = event.with("pci_address", self.address.as_str());
        match &self.identity {
            Some(identity) => event.with("name", identity.name.as_str()),
            None => event,
        }
    }
}

impl Gauges {
    /// Whether nothing is worked on, as far as that is told.
    fn is_idle(&self) -> bool {
        let parts = [self.usage_percent, self.memory_busy_percent, self.encoder_percent, self.decoder_percent];
        parts.iter().flatten().all(|percent| *percent == 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectors::{gpu::pci, sysfs::tests::tree};

    fn slot(root: &std::path::Path, control: &str, status: &str) -> Slot {
        tree(
            root,
            &[
                ("0000:01:00.0/vendor", "0x10de"),
                ("0000:01:00.0/class", "0x030000"),
                ("0000:01:00.0/power/control", control),
                ("0000:01:00.0/power/runtime_status", status),
            ],
        );
        pci::slots(root).unwrap().remove(0)
    }

    fn answer(card: &mut Card, usage_percent: f64, now: Instant) {
        let identity = Identity { uuid: "GPU-1".to_owned(), name: "NVIDIA L4".to_owned(), index: Some(0) };
        let gauges = Gauges { usage_percent: Some(usage_percent), ..Gauges::default() };
        card.answered(identity, &gauges, now, &EventSink::default());
    }

    #[test]
    fn an_idle_processor_that_may_sleep_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let slot = slot(dir.path(), "auto", "active");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut card = Card::new("0000:01:00.0");
        let mut asked = Vec::new();
        for second in 0..100 {
            if card.may_be_asked(&slot, at(second)) {
                asked.push(second);
                // It works on something in the fifth second.
                answer(&mut card, if second == 5 { 3.0 } else { 0.0 }, at(second));
            }
        }
        // Idle from second 6 on, left alone from 16 on, and asked again from 76 on for as long.
        assert_eq!(asked, (0..16).chain(76..86).collect::<Vec<_>>());
        assert!(card.note().unwrap().contains("left alone"));
    }

    #[test]
    fn a_processor_that_never_sleeps_or_works_is_asked_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        for (control, usage) in [("on", 0.0), ("auto", 1.0)] {
            let slot = slot(dir.path(), control, "active");
            let mut card = Card::new("0000:01:00.0");
            for second in 0..100 {
                let now = start + Duration::from_secs(second);
                assert!(card.may_be_asked(&slot, now), "{control} {second}");
                answer(&mut card, usage, now);
            }
        }
    }

    #[test]
    fn a_processor_that_went_to_sleep_is_asked_once_it_wakes() {
        let dir = tempfile::tempdir().unwrap();
        let awake = slot(dir.path(), "auto", "active");
        let mut card = Card::new("0000:01:00.0");
        answer(&mut card, 0.0, Instant::now());
        let asleep = slot(dir.path(), "auto", "suspended");
        assert!(!card.may_be_asked(&asleep, Instant::now()));
        assert!(card.is_suspended());
        slot(dir.path(), "auto", "active");
        assert!(card.may_be_asked(&awake, Instant::now()));
        assert!(!card.is_suspended());
    }

    #[test]
    fn losing_it_is_an_event_once_and_again_after_it_was_back() {
        let events = EventSink::default();
        let mut card = Card::new("0000:01:00.0");
        card.lose("it is gone", &events);
        assert!(events.take().is_empty());
        for _ in 0..2 {
            answer(&mut card, 0.0, Instant::now());
            card.lose("it is gone", &events);
            card.lose("it is gone", &events);
            assert_eq!(events.take().len(), 1);
        }
    }
}
