//! Measures what samples of this host take on the wire, and what encoding them costs, as Markdown.
//!
//! Samples with every collector at its default interval for some seconds, 60 unless the first argument says otherwise, and then
//! encodes what was recorded in several ways. CPU time is that of the one thread that does it. Then samples fifty times as
//! often, so that the broker's blocks become full, and tells what a stream of these samples takes on its disk.

use std::{env, time::Duration};

use crate::recording::Recording;

mod disk;
mod encodings;
mod recording;
mod report;

/// Time between two samples of what the broker stores.
const FAST: Duration = Duration::from_millis(20);

fn main() {
    let seconds =
        env::args().nth(1).map_or(60, |text| text.parse().expect("the first argument is a number of seconds"));
    let time = Duration::from_secs(seconds);
    let recording = Recording::take(time, None);
    println!("{}", report::collectors(&recording));
    println!("{}", report::encodings(&recording));
    println!("{}", report::measurements(&recording));
    println!("{}", disk::table(&Recording::take(time, Some(FAST))));
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("less than a second"))
}
