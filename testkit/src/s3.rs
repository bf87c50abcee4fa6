//! An S3 store of a test's own: SeaweedFS in one process.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use duckdb::Connection;
use plimsoll_lake::extensions;
use plimsoll_nats::testing::eventually;
use tempfile::TempDir;

use crate::{Process, ports};

/// Names the SeaweedFS binary, before any other place is looked at.
pub const BINARY_VARIABLE: &str = "PLIMSOLL_SEAWEEDFS";
/// Key id of the one who may write.
pub const KEY_ID: &str = "plimsoll";
/// That one's secret.
pub const SECRET: &str = "plimsoll-secret";
/// The bucket that there is.
pub const BUCKET: &str = "plimsoll";

/// A start takes three to eight seconds, and more beside other work.
const LIMIT: Duration = Duration::from_secs(120);

/// An S3 store on a free port of loopback, with a bucket.
#[derive(Debug)]
pub struct TestS3 {
    port: u16,
    /// Ports whose Unix sockets the server leaves in `/tmp`.
    ports: [u16; 8],
    // Stands before the folder: the server ends first.
    server: Option<Process>,
    dir: TempDir,
}

impl TestS3 {
    /// Starts the store and waits until it keeps what it is given.
    ///
    /// # Panics
    /// When there is no SeaweedFS, with what to do, and when it does not start.
    pub async fn start() -> Self {
        let ports = ports::free();
        let mut s3 = Self { port: ports[0], ports, server: None, dir: TempDir::new().expect("a temporary folder") };
        s3.spawn();
        s3.ready().await;
        s3
    }

    fn spawn(&mut self) {
        let binary = find().unwrap_or_else(|| {
            panic!(
                "SeaweedFS was not found: run `make test-tools`, put `weed` on PATH, or name it in {BINARY_VARIABLE}"
            )
        });
        let identities = self.dir.path().join("identities.json");
        let keys = format!(r#"[{{"accessKey": "{KEY_ID}", "secretKey": "{SECRET}"}}]"#);
        let actions = r#"["Admin", "Read", "List", "Tagging", "Write"]"#;
        let json =
            format!(r#"{{"identities": [{{"name": "plimsoll", "credentials": {keys}, "actions": {actions}}}]}}"#);
        fs::write(&identities, json).expect("written");
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).expect("a folder");
        let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = self.ports;
        let mut command = Command::new(binary);
        command
            .arg("server")
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", identities.display()));
        command.args([&format!("-s3.port={s3}"), &format!("-s3.port.grpc={s3_grpc}")]);
        command.args([&format!("-master.port={master}"), &format!("-master.port.grpc={master_grpc}")]);
        command.args([&format!("-volume.port={volume}"), &format!("-volume.port.grpc={volume_grpc}")]);
        command.args([&format!("-filer.port={filer}"), &format!("-filer.port.grpc={filer_grpc}")]);
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        // Small files that grow with what is in them, and no reserve for a disk that others fill.
        command.args(["-master.volumeSizeLimitMB=64", "-volume.max=40", "-volume.minFreeSpace=64MiB"]);
        command.current_dir(self.dir.path());
        let log = fs::File::create(self.dir.path().join("log")).expect("a log");
        self.server = Some(Process::spawn(command.stdout(Stdio::null()).stderr(log)));
    }

    /// Waits until an object can be written and read again; writing makes the bucket.
    async fn ready(&self) {
        let connection = Connection::open_in_memory().expect("DuckDB opens");
        let httpfs = extensions::find(None, "httpfs").expect("`make tools` fetches it");
        let secret = format!(
            "CREATE SECRET (TYPE s3, KEY_ID '{KEY_ID}', SECRET '{SECRET}', ENDPOINT '{}', USE_SSL false, URL_STYLE 'path')",
            self.endpoint()
        );
        connection
            .execute_batch(&format!(
                "LOAD '{}'; SET http_retries = 0; SET http_timeout = 2; {secret}",
                httpfs.display()
            ))
            .expect("DuckDB takes the credentials");
        let object = format!("s3://{BUCKET}/ready.parquet");
        let copy = format!("COPY (SELECT 1) TO '{object}'; SELECT * FROM '{object}'");
        eventually("the S3 store", LIMIT, async || connection.execute_batch(&copy).ok()).await;
    }

    /// Host and port.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for TestS3 {
    fn drop(&mut self) {
        self.server = None;
        for port in self.ports {
            for name in ["s3", "s3-grpc", "master-grpc", "volume-grpc", "filer", "filer-grpc"] {
                let _ = fs::remove_file(format!("/tmp/seaweedfs-{name}-{port}.sock"));
            }
        }
    }
}

fn find() -> Option<PathBuf> {
    let fetched = option_env!("PLIMSOLL_SEAWEEDFS").map(PathBuf::from);
    let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    std::env::var_os(BINARY_VARIABLE)
        .map(PathBuf::from)
        .into_iter()
        .chain(fetched)
        .chain(on_path.unwrap_or_default().into_iter().map(|folder| folder.join("weed")))
        .find(|path| path.is_file())
}
