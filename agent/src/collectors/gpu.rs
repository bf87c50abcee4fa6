//! NVIDIA graphics processors and what runs on them, by NVIDIA's management library (NVML), which is loaded when there is a
//! processor to ask about.
//!
//! A processor that the kernel has suspended is left alone, as each question would wake it; one that it may suspend is left
//! alone for a while when it is idle, as being asked would keep it awake for ever.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use self::{
    card::Card,
    pci::Slot,
    processes::Process,
    reading::Identity,
    session::{Outcome, Session, Silence, Told},
};
use super::{CollectError, Collector, sysfs::Scans};
use crate::{
    context::{Context, HostPaths},
    events::EventSink,
    rows::Tables,
};

mod card;
mod pci;
mod processes;
mod reading;
mod session;
mod table;
mod xid;

/// How long a sample waits for NVML; an answer that comes later is the next sample's.
const PATIENCE: Duration = Duration::from_secs(5);
/// After how long NVML is tried again when it can't be used, and a processor when it did not answer.
const RETRY: Duration = Duration::from_secs(300);

/// Reads every NVIDIA graphics processor; a host may have none.
#[derive(Debug)]
pub struct Gpu {
    paths: HostPaths,
    library: PathBuf,
    events: EventSink,
    scans: Scans,
    slots: Vec<Slot>,
    cards: Vec<Card>,
    session: Option<Session>,
    retry_at: Option<Instant>,
    /// Why NVML tells nothing.
    trouble: Option<String>,
}

impl Gpu {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            paths: context.paths.clone(),
            library: context.config.gpu.library.clone(),
            events: context.events.clone(),
            scans: Scans::default(),
            slots: Vec::new(),
            cards: Vec::new(),
            session: None,
            retry_at: None,
            trouble: None,
        }
    }

    /// Looks for processors on the bus. One that is no longer there is lost; one that another driver has taken is forgotten.
    fn scan(&mut self) -> Result<(), CollectError> {
        self.slots = pci::slots(&self.paths.sys("bus/pci/devices"))?;
        for slot in self.slots.iter().filter(|slot| slot.has_nvidias_driver()) {
            if self.cards.iter().all(|card| card.address != slot.address) {
                self.cards.push(Card::new(&slot.address));
            }
        }
        let slots = &self.slots;
        let slot = |card: &Card| slots.iter().find(|slot| slot.address == card.address);
        self.cards.retain(|card| slot(card).map_or(card.is_known(), Slot::has_nvidias_driver));
        for card in &mut self.cards {
            if slot(card).is_none() {
                card.lose("it is gone from the PCI bus", &self.events);
            }
        }
        Ok(())
    }

    /// Asks NVML about the processors that are awake.
    fn ask(&mut self, awake: Vec<String>, now: Instant) -> Vec<Told> {
        if awake.is_empty() {
            // Closes the library: some drivers suspend nothing while it is open.
            self.session = None;
            return Vec::new();
        }
        let retry = self.retry_at.is_some_and(|at| now >= at);
        if retry || self.session.as_ref().is_some_and(|session| !session.covers(&awake)) {
            self.session = None;
        }
        if self.session.is_none() && (retry || self.retry_at.is_none()) {
            self.retry_at = None;
            self.session = self.start(&awake);
        }
        match self.session.as_mut().map(|session| session.ask(awake, PATIENCE)) {
            Some(Outcome::Answered(told)) => {
                self.trouble = None;
                told
            }
            Some(Outcome::Pending) => {
                self.trouble = Some("NVML does not answer: the driver may hang".to_owned());
                Vec::new()
            }
            Some(Outcome::Failed(reason)) => {
                self.fail(reason);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn start(&mut self, awake: &[String]) -> Option<Session> {
        let session = Session::start(&self.library, awake.to_vec(), self.events.clone());
        session.map_err(|error| self.fail(format!("a thread to ask NVML can't be started: {error}"))).ok()
    }

    fn fail(&mut self, reason: String) {
        self.session = None;
        self.trouble = Some(reason);
        self.retry_later();
    }

    fn retry_later(&mut self) {
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }

    /// Takes note of what a processor told, and adds its rows.
    fn take(&mut self, told: Told, now: Instant, tables: &mut Tables) {
        let Some(card) = self.cards.iter_mut().find(|card| card.address == told.address) else {
            return;
        };
        card.count_xids(told.xids);
        match told.state {
            Ok((identity, reading)) => {
                card.answered(identity, &reading.gauges, now, &self.events);
                table::push(tables.of("gpu"), card, &reading);
                for process in &reading.processes {
                    let name = process_name(&self.paths, process);
                    table::push_process(tables.of("gpu_process"), card, process, &name);
                }
            }
            Err(silence) => {
                match silence {
                    Silence::Lost(reason) => card.lose(&reason, &self.events),
                    Silence::Refused(reason) => card.refuse(reason),
                }
                self.retry_later();
            }
        }
    }
}

impl Collector for Gpu {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let now = Instant::now();
        if self.scans.due() {
            self.scan()?;
        }
        let mut awake = Vec::new();
        for slot in self.slots.iter().filter(|slot| slot.has_nvidias_driver()) {
            let Some(card) = self.cards.iter_mut().find(|card| card.address == slot.address) else {
                continue;
            };
            if card.may_be_asked(slot, now) {
                awake.push(slot.address.clone());
            }
        }
        for told in self.ask(awake, now) {
            self.take(told, now, tables);
        }
        for card in &self.cards {
            table::push_silent(tables.of("gpu"), card);
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.trouble.clone().into_iter().collect();
        if self.slots.is_empty() {
            notes.push("There is no NVIDIA graphics processor on the PCI bus".to_owned());
        }
        for slot in self.slots.iter().filter(|slot| !slot.has_nvidias_driver()) {
            notes.push(match &slot.driver {
                Some(driver) => {
                    format!("The graphics processor {} has the driver `{driver}`, not NVIDIA's", slot.address)
                }
                None => format!("The graphics processor {} has no driver", slot.address),
            });
        }
        notes.extend(self.cards.iter().filter_map(Card::note));
        notes
    }
}

/// The name of a process; empty when it has just ended or is out of sight.
fn process_name(paths: &HostPaths, process: &Process) -> String {
    let name = fs::read_to_string(paths.proc(&process.pid.to_string()).join("comm")).unwrap_or_default();
    name.trim_end().to_owned()
}
