//! A PostgreSQL catalog that is lost in the middle of transactions. The only test of its process, as it counts threads.

use plimsoll_lake::{LakeConfig, LakeWriter};
use plimsoll_testkit::{TestPostgres, postgres};
use secrecy::SecretString;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("Linux").count()
}

#[tokio::test]
async fn a_lake_that_is_dropped_after_that_leaves_nothing_behind() {
    let mut server = TestPostgres::start().await;
    server.create_database("lake");
    let dir = tempfile::TempDir::new().expect("a folder");
    let catalog = format!("postgres:dbname=lake host=127.0.0.1 port={} user={}", server.port(), postgres::USER);
    let catalog_password = Some(SecretString::from(postgres::PASSWORD));
    let config = LakeConfig { catalog, catalog_password, ..LakeConfig::embedded(dir.path()) };
    drop(LakeWriter::open(&config).expect("creates the lake"));
    let before = threads();
    for _ in 0..3 {
        let writer = LakeWriter::open(&config).expect("opens");
        let connection = writer.lake().connection();
        connection.execute_batch("BEGIN; SELECT count(*) FROM lake.plimsoll.positions").expect("reads");
        server.crash().await;
        let sql = "UPDATE lake.plimsoll.positions SET sequence = 1";
        connection.execute_batch(sql).expect_err("the catalog is away");
        drop(writer);
        server.start_again().await;
    }
    assert_eq!(threads(), before);
}
