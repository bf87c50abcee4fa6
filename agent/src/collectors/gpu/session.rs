//! Talks to NVIDIA's management library (NVML) on a thread of its own, as calls into a driver in trouble may hang.
//!
//! The thread owns the library, which it closes when the session is dropped. It is never joined: the process can end while it
//! hangs.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::Duration,
};

use nvml_wrapper::{
    Device, Nvml, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError, event::EventSet,
};
use plimsoll_nats::event::EventKind;

use super::{
    reading::{self, Identity, Reading},
    xid,
};
use crate::events::{Event, EventSink};

/// How often XID errors are asked for. Those between two askings all carry the number of the last one (NVML's documentation of
/// `nvmlEventSetWait_v2`), so that it is often.
const XID_INTERVAL: Duration = Duration::from_millis(250);
/// Most XID errors of one processor that are told at a time.
const MAX_XIDS: usize = 64;

/// A running conversation with NVML about some processors.
#[derive(Debug)]
pub struct Session {
    addresses: Vec<String>,
    questions: SyncSender<Vec<String>>,
    answers: Receiver<Answer>,
    /// Whether a question has no answer yet.
    waiting: bool,
}

/// What was found of each processor asked about; or why NVML can't be asked at all.
type Answer = Result<Vec<Told>, String>;

/// What was found of one processor.
#[derive(Debug)]
pub struct Told {
    /// Its PCI address.
    pub address: String,
    /// Who it is and what it says, or why it says nothing.
    pub state: Result<(Identity, Reading), Silence>,
    /// XID errors since the last time; none where they can't be watched.
    pub xids: Option<u64>,
}

/// Why a processor says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// It has fallen off the bus or must be reset, as the text says.
    Lost(String),
    /// It can't be asked, for another reason.
    Refused(String),
}

/// How a question went.
#[derive(Debug)]
pub enum Outcome {
    /// NVML answered.
    Answered(Vec<Told>),
    /// It has not answered yet.
    Pending,
    /// It can't be asked, and the session is over.
    Failed(String),
}

impl Session {
    /// Starts to talk about the processors at these PCI addresses. Fails when no thread can be started.
    pub fn start(library: &Path, addresses: Vec<String>, events: EventSink) -> io::Result<Self> {
        let (questions, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let (library, about) = (library.to_owned(), addresses.clone());
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || {
            if let Err(reason) = talk(&library, &about, &asked, &answer, &events) {
                // Nobody waits for the reason once the session is dropped.
                let _ = answer.send(Err(reason));
            }
        })?;
        Ok(Self { addresses, questions, answers, waiting: false })
    }

    /// Whether the session is about all of these processors.
    pub fn covers(&self, addresses: &[String]) -> bool {
        addresses.iter().all(|address| self.addresses.contains(address))
    }

    /// Asks about some of the processors and waits at most so long for the answer. A later call takes an answer that was late.
    pub fn ask(&mut self, addresses: Vec<String>, patience: Duration) -> Outcome {
        if !self.waiting {
            // A thread that has ended has left its reason below.
            let _ = self.questions.try_send(addresses);
        }
        match self.answers.recv_timeout(patience) {
            Ok(Ok(told)) => {
                self.waiting = false;
                Outcome::Answered(told)
            }
            Ok(Err(reason)) => Outcome::Failed(reason),
            Err(RecvTimeoutError::Timeout) => {
                self.waiting = true;
                Outcome::Pending
            }
            Err(RecvTimeoutError::Disconnected) => Outcome::Failed("the thread that asks it has ended".to_owned()),
        }
    }
}

/// Answers questions until nobody asks any more. Fails when the library can't be used.
fn talk(
    library: &Path,
    addresses: &[String],
    questions: &Receiver<Vec<String>>,
    answers: &SyncSender<Answer>,
    events: &EventSink,
) -> Result<(), String> {
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init().map_err(|error| explain(library, &error))?;
    let mut gpus: Vec<Gpu<'_>> = addresses.iter().map(|address| Gpu::open(&nvml, address)).collect();
    loop {
        let question = questions.recv_timeout(XID_INTERVAL);
        if matches!(question, Err(RecvTimeoutError::Disconnected)) {
            return Ok(());
        }
        if let Ok(asked) = &question {
            gpus.iter_mut().for_each(|gpu| gpu.is_awake = asked.contains(&gpu.address));
        }
        // One that is not asked about may be suspended, and is left alone altogether.
        gpus.iter_mut().filter(|gpu| gpu.is_awake).for_each(|gpu| gpu.take_xids(events));
        if question.is_ok() {
            let told = gpus.iter_mut().filter(|gpu| gpu.is_awake).map(Gpu::tell).collect();
            if answers.send(Ok(told)).is_err() {
                return Ok(());
            }
        }
    }
}

/// A processor as NVML knows it.
struct Gpu<'nvml> {
    address: String,
    is_awake: bool,
    device: Result<(Device<'nvml>, Identity), Silence>,
    /// Gathers XID errors. One a processor: NVML frees a set when one of its processors can't be watched, and a lost one can't
    /// even be asked which it was.
    xids: Option<EventSet<'nvml>>,
    untold_xids: u64,
}

impl<'nvml> Gpu<'nvml> {
    fn open(nvml: &'nvml Nvml, address: &str) -> Self {
        let found = nvml.device_by_pci_bus_id(address).and_then(|device| {
            let identity = reading::identify(&device)?;
            Ok((device, identity))
        });
        let xids = found.as_ref().ok().and_then(|(device, _)| watched(nvml, device));
        let device = found.map_err(|error| silence(&error));
        Self { address: address.to_owned(), is_awake: true, device, xids, untold_xids: 0 }
    }

    fn tell(&mut self) -> Told {
        let state = match &self.device {
            Ok((device, identity)) => match reading::read(device) {
                Ok(reading) => Ok((identity.clone(), reading)),
                Err(error) => Err(silence(&error)),
            },
            Err(silence) => Err(silence.clone()),
        };
        let xids = self.xids.as_ref().map(|_| std::mem::take(&mut self.untold_xids));
        Told { address: self.address.clone(), state, xids }
    }

    fn take_xids(&mut self, events: &EventSink) {
        let (Some(set), Ok((_, identity))) = (&self.xids, &self.device) else {
            return;
        };
        for _ in 0..MAX_XIDS {
            // No error has come, or the processor can't tell any more.
            let Ok(event) = set.wait(0) else {
                return;
            };
            if let Some(error) = event.event_data {
                self.untold_xids += 1;
                events.emit(xid_event(&self.address, identity, &error));
            }
        }
    }
}

/// Has NVML gather the XID errors of a processor; none where it can't.
fn watched<'nvml>(nvml: &'nvml Nvml, device: &Device<'nvml>) -> Option<EventSet<'nvml>> {
    let set = nvml.create_event_set().ok()?;
    device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()
}

fn xid_event(address: &str, identity: &Identity, error: &XidError) -> Event {
    let number = match error {
        XidError::Value(number) => *number,
        // The number that NVML gives to what it has no number for.
        XidError::Unknown => 999,
    };
    let meaning = xid::meaning(number);
    let message = match meaning {
        Some(meaning) => format!("{} at {address} reported XID {number}: {meaning}", identity.name),
        None => format!("{} at {address} reported XID {number}", identity.name),
    };
    let event = Event::new(EventKind::GpuXid, &identity.uuid, message)
        .with("xid", number)
        .with("name", identity.name.as_str())
        .with("pci_address", address);
    match meaning {
        Some(meaning) => event.with("meaning", meaning),
        None => event,
    }
}

fn silence(error: &NvmlError) -> Silence {
    match error {
        NvmlError::GpuLost => Silence::Lost("it has fallen off the bus or can't be reached".to_owned()),
        NvmlError::ResetRequired => Silence::Lost("it must be reset before it can be used again".to_owned()),
        NvmlError::NoPermission | NvmlError::OperatingSystem => {
            Silence::Refused(format!("{error}: the agent needs access to `/dev/nvidia*`"))
        }
        other => Silence::Refused(other.to_string()),
    }
}

/// Why NVML can't be used, with what would help.
fn explain(library: &Path, error: &NvmlError) -> String {
    let name = library.display();
    match error {
        NvmlError::LibloadingError(why) if !is_there(library, &why.to_string()) => {
            format!(
                "`{name}` is not installed: it comes with NVIDIA's driver, or as a package of its own such as nvidia-utils"
            )
        }
        NvmlError::LibloadingError(why) => format!("`{name}` can't be loaded: {why}"),
        NvmlError::DriverNotLoaded => "NVIDIA's driver is not loaded".to_owned(),
        NvmlError::LibRmVersionMismatch => {
            format!(
                "`{name}` and NVIDIA's loaded driver are of different versions, as after an update: restart the host"
            )
        }
        NvmlError::NoPermission => "NVML refuses: the agent needs access to `/dev/nvidiactl`".to_owned(),
        other => format!("NVML can't be used: {other}"),
    }
}

/// Whether a library that could not be loaded is there at all. The loader says so in words only when it searches.
fn is_there(library: &Path, why: &str) -> bool {
    let searched = library.parent().is_none_or(|parent| parent.as_os_str() == OsStr::new(""));
    if searched { !why.contains("No such file or directory") } else { PathBuf::from(library).exists() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_absent_is_told_from_one_that_does_not_load() {
        let reason = |library: &str| {
            let error = Nvml::builder().lib_path(OsStr::new(library)).init().unwrap_err();
            explain(Path::new(library), &error)
        };
        assert!(reason("libplimsoll-absent.so.1").starts_with("`libplimsoll-absent.so.1` is not installed"));
        assert!(reason("/nowhere/libnvidia-ml.so").contains("is not installed"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(reason(file.path().to_str().unwrap()).contains("can't be loaded"));
    }

    #[test]
    fn an_xid_says_what_it_stands_for_where_that_is_known() {
        let identity = Identity { uuid: "GPU-1".to_owned(), name: "NVIDIA L4".to_owned(), index: Some(0) };
        let event = xid_event("0000:01:00.0", &identity, &XidError::Value(79));
        assert_eq!(event.message, "NVIDIA L4 at 0000:01:00.0 reported XID 79: the GPU has fallen off the bus");
        assert_eq!((event.subject.as_str(), &event.attributes["xid"]), ("GPU-1", &79.into()));
        let event = xid_event("0000:01:00.0", &identity, &XidError::Unknown);
        assert_eq!((event.attributes.contains_key("meaning"), &event.attributes["xid"]), (false, &999.into()));
    }
}
