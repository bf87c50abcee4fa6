//! A disk that is full.

use std::{fs::File, io::Write as _, path::Path, process::Command, time::Duration};

use plimsoll_nats::testing::{TestServer, eventually};
use plimsoll_testkit::LakePlace;
use rustix::process::{Resource, Rlimit, prlimit};
use tempfile::TempDir;

use crate::{
    fleet::{Fleet, LIMIT, length},
    member::Member,
    publisher::Publisher,
};

/// Names the small disk to the child test.
const DISK: &str = "PLIMSOLL_TEST_DISK";

/// A disk of 24 MiB: a tmpfs in a mount namespace of the child test's own, which needs no privilege where the system allows user
/// namespaces. Where it does not, the next test has to do.
#[test]
fn the_disk_is_full() {
    let namespace = ["--user", "--map-root-user", "--mount"];
    let allowed = Command::new("unshare").args(namespace).arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        println!("left out: this system allows no namespaces");
        return;
    }
    let disk = TempDir::new().expect("a folder");
    let status = Command::new("unshare")
        .args(namespace)
        .args(["sh", "-c", r#"mount -t tmpfs -o size=24m tmpfs "$PLIMSOLL_TEST_DISK" && exec "$@""#, "sh"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "disk::on_a_disk_of_its_own", "--ignored", "--nocapture"])
        .env(DISK, disk.path())
        .status();
    assert!(status.expect("starts").success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child process of another test"]
async fn on_a_disk_of_its_own() {
    let Some(disk) = std::env::var_os(DISK) else { return };
    let disk = Path::new(&disk);
    let server = TestServer::start().await;
    let client = server.client().await;
    let publisher = Publisher::start(client.clone());
    let mut fleet = Fleet::new(&server.config(), client, LakePlace::embedded(&disk.join("lake")));
    fleet.grow(1);
    fleet.works(&publisher).await;
    let ballast = disk.join("ballast");
    fill(&ballast);
    starves(&mut fleet).await;
    std::fs::remove_file(ballast).expect("removed");
    recovers(&mut fleet, &publisher).await;
    fleet.account("disk full", publisher).await.settle();
}

/// A limit on the size of files, which the kernel enforces for everybody: a write past it is cut short and then refused, as on a full
/// disk, of Parquet files as of the catalog. The signal that would come with it must be ignored.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_can_grow() {
    let (server, folder) = (TestServer::start().await, TempDir::new().expect("a folder"));
    let client = server.client().await;
    let publisher = Publisher::start(client.clone());
    let mut fleet = Fleet::new(&server.config(), client, LakePlace::embedded(folder.path()));
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap '' XFSZ; exec "$1""#, "sh", env!("CARGO_BIN_EXE_plimsoll-ingest")]);
    fleet.members.push(Member::start_by(command, fleet.variables()));
    fleet.works(&publisher).await;
    limit_files(&fleet, Some(1000));
    starves(&mut fleet).await;
    limit_files(&fleet, None);
    recovers(&mut fleet, &publisher).await;
    fleet.account("no file can grow", publisher).await.settle();
}

fn limit_files(fleet: &Fleet, bytes: Option<u64>) {
    let pid = fleet.members[0].process().pid();
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None }).expect("takes a limit");
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("created");
    let block = vec![1; 64 * 1024];
    let refused = (0..1_000_000).find_map(|_| file.write_all(&block).err());
    assert_eq!(refused.expect("a small disk").kind(), std::io::ErrorKind::StorageFull);
}

/// Waits until the member says that it can't commit, and that nothing becomes visible from then on.
async fn starves(fleet: &mut Fleet) {
    let member = &fleet.members[0];
    let told = async || member.not_ready().await.filter(|reasons| reasons.contains("commit"));
    println!("{}", eventually("the fault to be told", LIMIT, told).await);
    let before = fleet.rows();
    tokio::time::sleep(Duration::from_secs(1) + length()).await;
    assert!(!fleet.members[0].has_ended() && !fleet.members[0].is_ready().await);
    assert_eq!(fleet.rows(), before, "nothing becomes visible");
}

async fn recovers(fleet: &mut Fleet, publisher: &Publisher) {
    fleet.works(publisher).await;
    let member = &fleet.members[0];
    eventually("the member to be ready", LIMIT, async || member.is_ready().await.then_some(())).await;
}
