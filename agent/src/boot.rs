//! Tells that the host has booted since an agent last ran.

use std::fs;

use plimsoll_nats::event::{EventKind, HostEvent};

use crate::{
    context::HostPaths,
    events::{Event, EventSink},
    message::{Message, Topic},
    state::StateDir,
};

const BOOT_ID: &str = "boot_id";

/// Which boots have been told, as far as the spool says.
#[derive(Debug, Default)]
pub struct ToldBoots(Vec<String>);

impl ToldBoots {
    /// Looks at a message that an earlier run has left in the spool.
    pub fn visit(&mut self, message: &Message) {
        if message.topic == Topic::Event(EventKind::Reboot)
            && let Ok(event) = serde_json::from_slice::<HostEvent>(&message.payload)
        {
            self.0.extend(event.attributes.get(BOOT_ID).and_then(|id| id.as_str()).map(str::to_owned));
        }
    }
}

/// The boot that this process runs in; none where the kernel does not tell, as elsewhere than on Linux.
///
/// `Documentation/admin-guide/sysctl/kernel.rst`, section `random`: `boot_id` is a UUID generated the first time that it is read,
/// and unvarying after that.
#[must_use]
pub fn boot_id(paths: &HostPaths) -> Option<String> {
    let text = fs::read_to_string(paths.proc("sys/kernel/random/boot_id")).ok()?;
    let id = text.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Emits an event where the noted boot is another than `current`. Without a note there is nothing to tell: it is the first start.
///
/// An agent that was killed after the event was spooled and before [`note`] has told it, which `told` knows.
pub fn tell(state: &StateDir, current: &str, told: &ToldBoots, events: &EventSink) {
    let Some(previous) = state.boot_id().filter(|previous| previous != current) else { return };
    if !told.0.iter().any(|id| id == current) {
        let event = Event::new(EventKind::Reboot, "", "The host has booted since the agent last ran");
        events.emit(event.with(BOOT_ID, current).with("previous_boot_id", previous));
    }
}

/// Notes the boot, once its event is on disk.
pub fn note(state: &StateDir, current: &str) {
    if state.boot_id().as_deref() != Some(current)
        && let Err(error) = state.set_boot_id(current)
    {
        tracing::warn!(%error, "the boot cannot be noted: this reboot may be told again");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use plimsoll_nats::HostId;
    use ulid::Ulid;

    use super::*;
    use crate::{buffer::SharedBuffer, events::EventOutlet};

    #[test]
    fn a_boot_is_told_once_and_not_at_the_first_start() {
        let folder = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(Some(folder.path())).unwrap().unwrap();
        let (events, mut told) = (EventSink::default(), ToldBoots::default());
        tell(&state, "one", &told, &events);
        note(&state, "one");
        tell(&state, "one", &told, &events);
        assert_eq!(events.take(), []);
        tell(&state, "two", &told, &events);
        let buffer = Arc::new(SharedBuffer::new(1024));
        EventOutlet::new(HostId::parse("h").unwrap(), Ulid::generate(), Arc::clone(&buffer)).pump(&events);
        let message = buffer.lock().pop_oldest().unwrap().message;
        assert!(buffer.lock().is_empty());
        // Killed before the note, the next run finds it in the spool.
        told.visit(&message);
        tell(&state, "two", &told, &events);
        assert_eq!(events.take(), []);
        note(&state, "two");
        tell(&state, "three", &told, &events);
        let event = events.take().remove(0);
        assert_eq!((event.kind, event.attributes["previous_boot_id"].as_str()), (EventKind::Reboot, Some("two")));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_host_has_a_boot_id() {
        let id = boot_id(&HostPaths::default()).unwrap();
        assert_eq!(id.len(), 36, "{id}");
    }
}
