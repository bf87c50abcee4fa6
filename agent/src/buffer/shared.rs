//! The buffer as samplers and publishers share it: what is in memory, and the spool behind it.
//!
//! # Where a message is
//!
//! While messages flow, they are in memory alone: the broker has them within milliseconds. In trouble ([`SharedBuffer::retreat`])
//! what was not acknowledged goes to disk, and so does each message from then on, before [`SharedBuffer::push`] returns. What was
//! sent and not answered stays in memory as well, until the stream has been asked; everything else is on disk alone, and is its
//! *backlog*.
//!
//! Once publishing works again ([`SharedBuffer::settle`]) a short backlog goes first, so that after a short outage the stream has
//! each lane in order. A long one does not keep new messages waiting: they flow from memory at once, while the backlog is loaded and
//! sent beside them, oldest first. Until it is gone they are written to disk too, so that killing the agent then loses nothing.
//!
//! # Invariants
//!
//! - A message is never given to both publishers: what is in memory on either [`Side`] is held by the spool, which does not load it.
//! - What is in memory and has a place on disk is marked there as maybe sent.
//! - In trouble no message is in memory alone, unless the disk fails; then the buffer's limit applies, and the oldest go first.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use plimsoll_nats::{Incarnation, Position, dead::chain};
use tokio::sync::Notify;

use super::{Buffer, Doubt, Entry, Outgoing};
use crate::{
    message::{Lane, Message, Number},
    spool::{Spool, SpoolError, SpoolStats, cursor},
};

/// A backlog up to this many messages goes before what is sampled now.
const SHORT_BACKLOG: u64 = 2048;
/// For no longer than this.
const SETTLING_TIME: Duration = Duration::from_secs(5);
/// Backlog in memory below which more is loaded, in messages.
const LOAD_BELOW: usize = 512;
/// The same in bytes.
const LOAD_BELOW_BYTES: usize = 512 * 1024;

/// Which publisher's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Those that are sampled now.
    Live,
    /// Those that were on disk alone.
    Backlog,
}

/// How publishing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The broker takes what is sampled.
    Flowing,
    /// The broker is there again, and a short backlog goes first.
    Settling {
        /// Since when.
        since: Instant,
    },
    /// Publishing is in trouble.
    Away,
}

/// Figures of a buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferStats {
    /// Messages in memory.
    pub batches: u64,
    /// What they take there, roughly.
    pub bytes: u64,
    /// What is on disk.
    pub spool: SpoolStats,
    /// Messages that were lost since the start.
    pub dropped: u64,
    /// Messages that the broker has taken since the start.
    pub published: u64,
    /// Their payload in bytes.
    pub published_bytes: u64,
}

impl std::ops::Add for BufferStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (a, b) = (self.spool, other.spool);
        let spool = SpoolStats {
            batches: a.batches + b.batches,
            bytes: a.bytes + b.bytes,
            segments: a.segments + b.segments,
            corrupt: a.corrupt + b.corrupt,
        };
        Self {
            batches: self.batches + other.batches,
            bytes: self.bytes + other.bytes,
            spool,
            dropped: self.dropped + other.dropped,
            published: self.published + other.published,
            published_bytes: self.published_bytes + other.published_bytes,
        }
    }
}

/// The buffer of one stream as samplers and publishers share it.
#[derive(Debug)]
pub struct SharedBuffer {
    state: Mutex<State>,
    /// Held while the spool's cursor is written, so that no older one replaces a newer.
    cursor: Mutex<()>,
    filled: Notify,
    backlogged: Notify,
}

#[derive(Debug)]
struct State {
    live: Buffer,
    backlog: Buffer,
    limit: usize,
    spool: Option<Spool>,
    mode: Mode,
    /// A backlog up to this many messages goes before what is sampled now.
    short_backlog: u64,
    /// Whether the spool could not be written when that was last tried.
    is_failing: bool,
    dropped: u64,
    dropped_untold: u64,
    published: u64,
    published_bytes: u64,
}

/// The messages of the live side, for as long as this lives; never across an await.
#[derive(Debug)]
pub struct Locked<'a>(MutexGuard<'a, State>);

impl Deref for Locked<'_> {
    type Target = Buffer;
    fn deref(&self) -> &Buffer {
        &self.0.live
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Buffer {
        &mut self.0.live
    }
}

impl SharedBuffer {
    /// Holds up to `limit` bytes in memory and has no spool.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with(limit, None)
    }

    /// Holds up to `limit` bytes in memory where the spool fails. Is in trouble until the publisher says otherwise.
    #[must_use]
    pub fn spooled(limit: usize, spool: Spool) -> Self {
        Self::with(limit, Some(spool))
    }

    fn with(limit: usize, spool: Option<Spool>) -> Self {
        let state = State {
            live: Buffer::default(),
            backlog: Buffer::default(),
            limit,
            mode: if spool.is_some() { Mode::Away } else { Mode::Flowing },
            spool,
            short_backlog: SHORT_BACKLOG,
            is_failing: false,
            dropped: 0,
            dropped_untold: 0,
            published: 0,
            published_bytes: 0,
        };
        Self { state: Mutex::new(state), cursor: Mutex::new(()), filled: Notify::new(), backlogged: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds messages and wakes the publisher. In trouble they are on disk when this returns: who numbers them one after the other
    /// and hands each over before the next loses none by being killed. What has to go for them is counted.
    ///
    /// Writes to the page cache at most, and waits for no disk that keeps up.
    pub fn push(&self, messages: impl IntoIterator<Item = Message>) {
        let mut state = self.state();
        messages.into_iter().for_each(|message| state.push(message));
        let may_load = state.may_load();
        drop(state);
        self.filled.notify_one();
        if may_load {
            self.backlogged.notify_one();
        }
    }

    /// Completes once there may be more to do on that side than at the last call.
    pub async fn filled(&self, side: Side) {
        match side {
            Side::Live => self.filled.notified().await,
            Side::Backlog => self.backlogged.notified().await,
        }
    }

    /// The messages of the live side, for as long as the guard lives; never across an await.
    pub fn lock(&self) -> Locked<'_> {
        Locked(self.state())
    }

    /// How publishing goes.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.state().mode
    }

    /// Whether nothing is left on that side.
    #[must_use]
    pub fn is_delivered(&self, side: Side) -> bool {
        let state = self.state();
        match side {
            Side::Live => state.live.is_empty(),
            Side::Backlog => state.backlog_len() == 0,
        }
    }

    /// Whether killing the agent now would lose nothing.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.state().live.unplaced() == 0
    }

    /// Publishing is in trouble: what is in memory goes to disk, and what is pushed from now on too.
    pub fn retreat(&self) {
        let mut state = self.state();
        if state.spool.is_some() {
            state.mode = Mode::Away;
            state.place();
        }
    }

    /// Publishing works, as far as is known: new messages flow once nothing is to go before them.
    pub fn settle(&self) {
        let mut state = self.state();
        let since = match state.mode {
            Mode::Flowing => return,
            Mode::Settling { since } => since,
            Mode::Away => Instant::now(),
        };
        let backlog = state.backlog_len();
        let nothing_goes_before = backlog == 0 || backlog > state.short_backlog || since.elapsed() > SETTLING_TIME;
        state.mode = if nothing_goes_before { Mode::Flowing } else { Mode::Settling { since } };
        drop(state);
        self.backlogged.notify_one();
    }

    /// The oldest message of a side that may be sent now; see [`Buffer::send`].
    pub fn send(&self, side: Side, reached: Position) -> Option<Outgoing> {
        let mut state = self.state();
        state.spool.iter_mut().for_each(|spool| spool.reach(reached));
        state.side(side).send(reached)
    }

    /// What was sent and not answered; see [`Buffer::doubts`].
    #[must_use]
    pub fn doubts(&self, side: Side, incarnation: Incarnation) -> Vec<Doubt> {
        self.state().side(side).doubts(incarnation)
    }

    /// Resolves a doubt: what is stored leaves, the rest waits to be sent again.
    pub fn resolve(&self, side: Side, doubt: &Doubt, stored: &BTreeSet<Number>) {
        let mut state = self.state();
        for entry in state.side(side).settle(doubt, stored) {
            state.finish(&entry);
            state.count_published(&entry);
        }
        self.wake(&state);
    }

    /// The broker has acknowledged a message.
    pub fn acknowledge(&self, side: Side, lane: &Lane, id: u64) {
        let mut state = self.state();
        if let Some(entry) = state.side(side).remove(lane, id) {
            state.finish(&entry);
            state.count_published(&entry);
        }
        self.wake(&state);
    }

    /// The broker will never take a message, which is lost.
    pub fn give_up(&self, side: Side, lane: &Lane, id: u64) {
        let mut state = self.state();
        if let Some(entry) = state.side(side).remove(lane, id) {
            state.finish(&entry);
            state.count_dropped(1);
        }
        self.wake(&state);
    }

    /// Wakes whoever waited for messages to leave.
    fn wake(&self, state: &State) {
        if state.mode != Mode::Flowing && state.backlog_len() == 0 {
            self.filled.notify_one();
        }
        if state.may_load() {
            self.backlogged.notify_one();
        }
    }

    /// Whether backlog is to be loaded.
    #[must_use]
    pub fn wants_backlog(&self) -> bool {
        self.state().may_load()
    }

    /// Loads backlog to be sent. Returns whether the stream must be asked about some of it. Blocks.
    ///
    /// Fails when the disk cannot be read, or cannot be told that these messages may be sent from now on.
    pub fn load(&self, reached: Position) -> Result<bool, SpoolError> {
        let Some(load) = self.state().spool.as_ref().and_then(Spool::next_load) else { return Ok(false) };
        let read = load.read();
        let loaded = match self.state().spool.as_mut() {
            Some(spool) => spool.take(load, read, reached)?,
            None => Vec::new(),
        };
        if loaded.is_empty() {
            return Ok(false);
        }
        let noted = self.note_windows();
        let mut state = self.state();
        if noted.is_err()
            && let Some(spool) = &mut state.spool
        {
            for loaded in &loaded {
                spool.release(loaded.place);
            }
        }
        noted?;
        let is_doubtful = loaded.iter().any(|loaded| loaded.doubt.is_some());
        for loaded in loaded {
            match loaded.doubt {
                Some(after) => state.backlog.push_sent(loaded.message, Some(loaded.place), after),
                None => state.backlog.push(loaded.message, Some(loaded.place)),
            }
        }
        Ok(is_doubtful)
    }

    /// Tells the disk what may be sent from now on.
    fn note_windows(&self) -> Result<(), SpoolError> {
        let Err((folder, source)) = self.save_cursor() else { return Ok(()) };
        // A full disk must not keep the spool from being emptied. Without a cursor everything is in doubt, which is true.
        tracing::warn!(error = %source, "the spool's cursor cannot be written and is removed");
        cursor::remove(&folder).map_err(|source| SpoolError::Io {
            action: "remove the cursor in",
            path: folder,
            source,
        })
    }

    fn save_cursor(&self) -> Result<(), (std::path::PathBuf, std::io::Error)> {
        let _turn = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((folder, snapshot)) =
            self.state().spool.as_mut().map(|spool| (spool.folder().to_owned(), spool.snapshot()))
        else {
            return Ok(());
        };
        cursor::write(&folder, &snapshot).map_err(|error| {
            self.state().spool.iter_mut().for_each(Spool::snapshot_failed);
            (folder, error)
        })
    }

    /// Whether there is something for [`SharedBuffer::keep`] to do.
    #[must_use]
    pub fn needs_keeping(&self) -> bool {
        self.state().spool.as_ref().is_some_and(Spool::needs_keeping)
    }

    /// Makes what is on disk outlast a power cut, and notes how far it is drained. To be called each second. Blocks.
    pub fn keep(&self) {
        let Some((unsynced, has_progressed)) =
            self.state().spool.as_mut().map(|spool| (spool.take_unsynced(), spool.has_progressed()))
        else {
            return;
        };
        if let Err(error) = unsynced.sync() {
            tracing::error!(%error, "the spool cannot be synced: a power cut now would lose more than a second of samples");
        }
        if has_progressed && let Err((_, error)) = self.save_cursor() {
            tracing::debug!(%error, "the spool's cursor cannot be written");
        }
    }

    /// Puts on disk what is left, and returns how many messages are lost. Blocks.
    pub fn close(&self) -> usize {
        self.retreat();
        self.keep();
        self.state().live.unplaced()
    }

    /// How many messages were lost since the last call.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.state().dropped_untold)
    }

    /// Figures of now.
    #[must_use]
    pub fn stats(&self) -> BufferStats {
        let state = self.state();
        BufferStats {
            batches: (state.live.len() + state.backlog.len()) as u64,
            bytes: (state.live.bytes() + state.backlog.bytes()) as u64,
            spool: state.spool.as_ref().map(Spool::stats).unwrap_or_default(),
            dropped: state.dropped,
            published: state.published,
            published_bytes: state.published_bytes,
        }
    }
}

impl State {
    fn side(&mut self, side: Side) -> &mut Buffer {
        match side {
            Side::Live => &mut self.live,
            Side::Backlog => &mut self.backlog,
        }
    }

    /// Messages that are on disk, or were until they were loaded, beside those of the live side.
    fn backlog_len(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::backlog) + self.backlog.len() as u64
    }

    fn may_load(&self) -> bool {
        let has_turn = match self.mode {
            Mode::Flowing => true,
            // What was sent before the trouble is older and goes first.
            Mode::Settling { .. } => self.live.is_empty(),
            Mode::Away => false,
        };
        let has_room = self.backlog.len() < LOAD_BELOW && self.backlog.bytes() < LOAD_BELOW_BYTES;
        has_turn && has_room && self.spool.as_ref().is_some_and(|spool| spool.backlog() > 0)
    }

    fn push(&mut self, message: Message) {
        let is_flowing = self.mode == Mode::Flowing;
        if !is_flowing
            && self.live.unplaced() == 0
            && let Some(spool) = &mut self.spool
        {
            match spool.append(&message, None) {
                // Told and counted below.
                Err(SpoolError::TooLarge { .. }) => {}
                appended => {
                    if self.note(appended).is_some() {
                        return;
                    }
                }
            }
        }
        self.live.push(message, None);
        if !is_flowing || self.backlog_len() > 0 {
            self.place();
        }
        self.bound();
    }

    /// Writes to disk what is in memory alone, oldest first, until the disk fails.
    fn place(&mut self) {
        let is_flowing = self.mode == Mode::Flowing;
        while let (Some(spool), Some(entry)) = (&mut self.spool, self.live.oldest_unplaced()) {
            // What flows is sent at once.
            let sent_after = entry.doubt().or(is_flowing.then(|| spool.reached()));
            let appended = spool.append(&entry.message, sent_after);
            if let Err(SpoolError::TooLarge { .. }) = &appended {
                // It would be in the way of all that follow.
                let (lane, id) = (entry.message.lane(), entry.id);
                self.live.remove(&lane, id);
                self.count_dropped(1);
                continue;
            }
            let Some(place) = self.note(appended) else { break };
            self.live.place_oldest(place);
            self.spool.iter_mut().for_each(|spool| spool.hold(place));
        }
        if !is_flowing {
            self.leave_to_disk();
        }
    }

    /// Forgets what is on disk and was never sent.
    fn leave_to_disk(&mut self) {
        let Some(spool) = &mut self.spool else { return };
        let lost = self.live.take_placed().into_iter().filter(|place| !spool.release(*place)).count();
        self.count_dropped(lost as u64);
    }

    /// Keeps to the limit of memory.
    fn bound(&mut self) {
        let is_over = |state: &Self| state.live.bytes() > state.limit && state.live.len() > 1;
        if is_over(self) && self.mode == Mode::Flowing && self.spool.is_some() {
            self.mode = Mode::Away;
            self.place();
        }
        while is_over(self) {
            let Some(entry) = self.live.pop_oldest() else { break };
            let on_disk = match (&mut self.spool, entry.place) {
                (Some(spool), Some(place)) => spool.release(place),
                _ => false,
            };
            self.count_dropped(u64::from(!on_disk));
        }
    }

    /// Tells when the spool begins or ceases to fail, and counts what went for what was appended.
    fn note<T>(&mut self, appended: Result<T, SpoolError>) -> Option<T> {
        let dropped = self.spool.as_mut().map_or(0, Spool::take_dropped);
        self.count_dropped(dropped);
        let has_failed = appended.is_err();
        match &appended {
            Err(error) if !self.is_failing => tracing::error!(
                error = %chain(error),
                buffer_bytes = self.limit,
                "the spool cannot be written: samples wait in memory, and the oldest are lost once that is full"
            ),
            Ok(_) if self.is_failing => tracing::info!("the spool can be written again"),
            _ => {}
        }
        self.is_failing = has_failed;
        appended.ok()
    }

    fn finish(&mut self, entry: &Entry) {
        if let (Some(spool), Some(place)) = (&mut self.spool, entry.place) {
            spool.finish(place);
        }
    }

    fn count_published(&mut self, entry: &Entry) {
        self.published += 1;
        self.published_bytes += entry.message.payload.len() as u64;
    }

    fn count_dropped(&mut self, count: u64) {
        self.dropped += count;
        self.dropped_untold += count;
    }
}

#[cfg(test)]
mod tests;
