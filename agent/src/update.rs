//! Replaces the agent by a newer release. Nothing here happens unless `update.url` is set.
//!
//! The agent that runs looks for a release now and then, verifies it, puts it into a folder of its state, and starts itself
//! anew. At each start, [`launch`] looks into that folder before anything else: a version that has proved itself is executed
//! in place of this program, one that is new is run as a child first. The child proves itself by creating a file once the
//! broker has acknowledged what it sent. If it ends, hangs or cannot be executed instead, it is never run again and the program
//! that was to be replaced goes on. The installed program is never written to, and starts all others.
//!
//! What lies in `<state_dir>/versions`:
//!
//! ```text
//! lock                              held by whoever adds a version
//! last_check                        Unix time in ms of the last look, as text
//! .incoming/                        a version that is not complete
//! <version>/plimsoll-agent          the program
//! <version>/release.json            what vouches for the program: signed, it names version, size and hash
//! <version>/release.json.minisig    the signature
//! <version>/trial                   how many trials were begun that have no outcome yet, as text
//! <version>/reported                created by the program on trial
//! <version>/good                    the trial succeeded; holds the version that it replaced
//! <version>/failed                  the trial failed; holds the reason, and the program is gone
//! <version>/told                    the outcome has become an event
//! ```
//!
//! A version appears by one rename of a complete, synced folder, and its marks by renames too, so a crash leaves either state.
//! A mark that is lost with the power makes the trial happen again, at most [`versions::MAX_TRIALS`] times. Signature and hash
//! are verified when a version is fetched and each time before it is executed.

pub mod command;
pub mod error;
pub mod fetch;
pub mod launch;
pub mod receipts;
pub mod release;
pub mod report;
pub mod updater;
pub mod versions;

pub use error::UpdateError;
pub use receipts::Receipts;

/// Version of this program.
///
/// # Panics
/// Never: Cargo accepts no other than semantic versions.
#[must_use]
pub fn own_version() -> semver::Version {
    semver::Version::parse(env!("CARGO_PKG_VERSION")).expect("Cargo accepts only semantic versions")
}
