//! One run of a command: bounded in time and output, and with nothing of it left behind when it goes wrong.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::timeout,
};

/// Most bytes that a command may print.
pub const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// What of a command's errors is kept.
const MAX_ERROR_BYTES: usize = 4096;
/// What of a command's errors is told.
const MAX_TOLD_CHARS: usize = 200;
/// Variables of the agent that a command sees. No others: some hold the broker's secret.
const VARIABLES: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ"];
/// How long a killed command may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// Why a run of a command yields nothing.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The program could not be started.
    #[error("failed to start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The output could not be read.
    #[error("failed to read what the command prints")]
    Read(#[source] io::Error),
    /// It did not end, or left its output open to a process of its own.
    #[error("the command did not end within {} s and was killed with its children{}", .limit.as_secs_f64(), told(.said))]
    TimedOut {
        /// The longest run.
        limit: Duration,
        /// What it said on standard error.
        said: String,
    },
    /// It printed too much.
    #[error("the command printed more than {MAX_OUTPUT_BYTES} bytes and was killed with its children")]
    TooLong,
    /// It failed.
    #[error("the command ended with {status}{}", told(.said))]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The first line of what it said on standard error.
        said: String,
    },
}

fn told(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(", saying `{said}`") }
}

/// Runs a command, and returns what it prints.
///
/// Fails when it does not succeed within `limit` or prints more than [`MAX_OUTPUT_BYTES`]. Then, and when the future is dropped, the
/// command and all of its children that have not left its process group are killed.
pub async fn run(command: &[String], limit: Duration) -> Result<Vec<u8>, ChildError> {
    let (mut child, mut group) = start(command)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut errors = Vec::new();
    let reading =
        async { tokio::try_join!(read_all(stdout), keep_start(stderr, &mut errors)).map(|(output, ())| output) };
    let ending = async {
        let output = reading.await?;
        let status = child.wait().await.map_err(ChildError::Read)?;
        Ok::<_, ChildError>((output, status))
    };
    let outcome = timeout(limit, ending).await;
    let said = || first_line(&errors);
    match outcome {
        Ok(Ok((output, status))) => {
            group.release();
            if status.success() { Ok(output) } else { Err(ChildError::Failed { status, said: said() }) }
        }
        Ok(Err(error)) => {
            end(&mut child, group).await;
            Err(error)
        }
        Err(_) => {
            end(&mut child, group).await;
            Err(ChildError::TimedOut { limit, said: said() })
        }
    }
}

fn start(command: &[String]) -> Result<(Child, ProcessGroup), ChildError> {
    let (program, arguments) = command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let kept = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(kept)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ChildError::Start { program: program.to_owned(), source })?;
    let group = ProcessGroup(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    Ok((child, group))
}

async fn end(child: &mut Child, group: ProcessGroup) {
    drop(group);
    // A process that the kernel holds on to is left to it.
    let _ = timeout(KILL_PATIENCE, child.wait()).await;
}

/// The processes of a run, killed on drop. Its first one must not have been waited for: until then no other group has its number.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Fails when all have ended by themselves.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, ChildError> {
    let mut output = Vec::new();
    if let Some(pipe) = pipe {
        let limit = MAX_OUTPUT_BYTES as u64 + 1;
        pipe.take(limit).read_to_end(&mut output).await.map_err(ChildError::Read)?;
    }
    if output.len() > MAX_OUTPUT_BYTES { Err(ChildError::TooLong) } else { Ok(output) }
}

/// Reads to the end, so that the command never waits, and keeps the start.
async fn keep_start(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) -> Result<(), ChildError> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = [0; MAX_ERROR_BYTES];
    loop {
        let count = pipe.read(&mut buffer).await.map_err(ChildError::Read)?;
        if count == 0 {
            return Ok(());
        }
        let room = MAX_ERROR_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// The first line that is not empty, fit for a log.
fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(MAX_TOLD_CHARS).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use plimsoll_nats::testing::eventually;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn shell(script: &str, limit: Duration) -> Result<String, ChildError> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        run(&command, limit).await.map(|output| String::from_utf8(output).unwrap())
    }

    /// Whether a process is there and has not ended.
    fn lives(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    }

    async fn written(path: &Path) -> String {
        eventually("the process id", LONG, async || {
            std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
        })
        .await
    }

    #[tokio::test]
    async fn a_command_runs_without_a_shell_and_without_the_agents_environment() {
        let output = run(&["/bin/echo", "$HOME", "a b"].map(str::to_owned), LONG).await.unwrap();
        assert_eq!(output, b"$HOME a b\n");
        // Cargo sets it for this test.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let seen = shell("env; pwd; cat", LONG).await.unwrap();
        assert!(!seen.contains("CARGO_") && seen.contains("PATH=") && seen.ends_with("\n/\n"), "{seen}");
    }

    #[tokio::test]
    async fn a_failure_tells_what_the_command_said() {
        let error = shell("echo; echo 'no such disk' >&2; echo more >&2; exit 3", LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "the command ended with exit status: 3, saying `no such disk`");
        let error = shell("kill -9 $$", LONG).await.unwrap_err();
        assert!(error.to_string().contains("signal: 9"), "{error}");
        let error = run(&["/nowhere/x".to_owned()], LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "failed to start `/nowhere/x`");
        assert!(run(&[], LONG).await.is_err());
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; echo trouble >&2; wait", path.display());
        let error = shell(&script, Duration::from_millis(500)).await.unwrap_err();
        let text = "the command did not end within 0.5 s and was killed with its children, saying `trouble`";
        assert_eq!(error.to_string(), text);
        let child = written(&path).await;
        eventually("the child's end", LONG, async || (!lives(&child)).then_some(())).await;
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", path.display());
        let child = tokio::select! {
            _ = shell(&script, LONG) => panic!("it hangs"),
            child = written(&path) => child,
        };
        eventually("the child's end", LONG, async || (!lives(&child)).then_some(())).await;
    }

    #[tokio::test]
    async fn a_background_process_that_holds_the_output_is_waited_for_and_killed() {
        let error = shell("sleep 1000 & echo done", Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, ChildError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_flood_is_cut_off_and_errors_never_block() {
        let error = shell("yes", LONG).await.unwrap_err();
        assert!(matches!(error, ChildError::TooLong), "{error}");
        let output = shell("head -c 1048576 /dev/zero; head -c 10000000 /dev/zero >&2", LONG).await.unwrap();
        assert_eq!(output.len(), MAX_OUTPUT_BYTES);
    }
}
