//! Two imports of the same rows at once, where nothing but their taking turns keeps the later one from missing the earlier one's rows.

use std::{sync::Barrier, thread};

use plimsoll_lake::{
    LakeWriter,
    import::{ImportOptions, Importer},
};
use plimsoll_testkit::{LakePlace, Servers};

use crate::rows::{expected, holds, message};

const MESSAGES: u64 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_time_store_each_row_once() {
    let servers = Servers::shared().await;
    let config = &LakePlace::fleet(&servers).config();
    let writer = LakeWriter::open(config).expect("creates the lake");
    let (at_once, options) =
        (Barrier::new(2), ImportOptions { now_ms: message(3, 1).stored_ms, allow_old: false, dry_run: false });
    let importers = [(); 2].map(|()| Importer::open(config, options).expect("opens"));
    // One that fails goes on to wait, so that the other one does not wait for ever.
    let import = |mut importer: Importer| {
        let mut store = |sequence| {
            at_once.wait();
            importer.store_batches(&[message(3, sequence).batch])
        };
        (1..=MESSAGES).map(&mut store).collect::<Vec<_>>()
    };
    let stored: u64 = thread::scope(|scope| {
        let imports = importers.map(|importer| scope.spawn(|| import(importer)));
        let stored = imports.into_iter().flat_map(|import| import.join().expect("no panic"));
        stored.map(|stored| stored.expect("stores").rows).sum()
    });
    holds(writer.lake(), &expected(3, MESSAGES), false);
    assert_eq!(stored, 10 * MESSAGES, "what was told");
}
