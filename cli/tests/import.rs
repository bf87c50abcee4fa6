//! `plimsoll import` and `plimsoll export` as a user runs them.

mod support;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use plimsoll_lake::{Access, Lake, LakeConfig, LakeWriter, rollup::RollupLimits};
use plimsoll_nats::{now_ms, testing::eventually};
use support::{LIMIT, Process, data, plimsoll};

/// Runs `plimsoll` in a folder to its end.
fn run(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut child = plimsoll()
        .current_dir(folder)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("plimsoll starts");
    // It may end before it has read everything.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("ends")
}

/// The same where it must succeed; returns what it said.
fn good(folder: &Path, args: &[&str], input: &str) -> String {
    let output = run(folder, args, input);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

/// The same where it must fail; returns code and what it said.
fn failed(folder: &Path, args: &[&str], input: &str) -> (i32, String) {
    let output = run(folder, args, input);
    (output.status.code().expect("no signal"), String::from_utf8(output.stderr).expect("text"))
}

fn lake_text(folder: &Path, sql: &str) -> String {
    let lake = Lake::open(&LakeConfig::embedded(&folder.join("data/lake")), Access::Read).expect("a lake");
    lake.connection().query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn file(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).expect("written");
    path
}

/// Lines of every type, whose times are seconds before now, in ns.
fn lines() -> String {
    let at = |ago: i64| (now_ms() / 1000 - ago) * 1_000_000_000;
    format!(
        "# a comment\n\
         web,host=web.1,Zone=a\\ b hits=1i,Load=0.5,ok=t,state=\"a \\\"b\\\"\" {}\n\
         web,host=web.1,Zone=a\\ b hits=2.5 {}\n\
         \n\
         web,host=db,Zone= hits=7u {}\n\
         cpu,host=db usage=1 {}\n",
        at(9),
        at(8),
        at(7),
        at(6),
    )
}

const WEB: &str = "SELECT string_agg(concat_ws(' ', host, coalesce(zone, '-'), hits, coalesce(load::VARCHAR, '-'), coalesce(ok::VARCHAR, '-'),
    coalesce(state, '-')), chr(10) ORDER BY ts) FROM lake.main.web";
const WEB_ROWS: &str = "web-1 a b 1.0 0.5 true a \"b\"\nweb-1 a b 2.5 - - -\ndb - 7.0 - - -";

#[test]
fn influx_lines_become_rows_as_the_agents_would() {
    let folder = data();
    let lines = lines();
    file(folder.path(), "dump.lp", lines.as_bytes());
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(lines.as_bytes()).expect("packs");
    file(folder.path(), "dump.lp.gz", &packed.finish().expect("packs"));
    file(folder.path(), "dump.lp.zst", &zstd::encode_all(lines.as_bytes(), 1).expect("packs"));
    let said = good(folder.path(), &["import", "dump.lp"], "");
    assert!(said.contains("imported 1 file: 4 rows read, 4 stored, 0 in the lake already"), "{said}");
    assert_eq!(lake_text(folder.path(), WEB), WEB_ROWS);
    assert_eq!(lake_text(folder.path(), "SELECT usage::VARCHAR FROM lake.main.exported_cpu"), "1.0");
    let said = good(folder.path(), &["import", "dump.lp.gz", "dump.lp.zst"], "");
    assert!(said.contains("imported 2 files: 8 rows read, 0 stored, 8 in the lake already"), "{said}");
    let said = good(folder.path(), &["import", "-", "--format", "influx", "--rename", "cpu=telegraf"], &lines);
    assert!(said.contains("4 rows read, 1 stored, 3 in the lake already"), "{said}");
    assert_eq!(lake_text(folder.path(), WEB), WEB_ROWS);
}

#[test]
fn a_bad_line_is_told_and_the_import_goes_on_after_it_was_mended() {
    let folder = data();
    let now = now_ms();
    let line = |n: i64| format!("m,host=h v={n}i {}\n", now - 100_000 + n);
    let good_lines: String = (0..250).map(line).collect();
    for (bad, expected) in [
        ("m,host=h v=", "column 12: expected a number"),
        ("m,host=h v=1i", "expected a time at the end of the line"),
        ("m v=1i 1790000000000", "expected a tag `host`, or --host for lines without one"),
        ("m,host=h v=\"text\" {now}", "expected a value of type integer for the field `v`, as before, found text"),
        ("m_1m,host=h v=1i {now}", "give it another with --rename 'm_1m=NAME'"),
        ("m,host=h v=1i 1000", "expected a time of the last two years, or --allow-old"),
    ] {
        let bad = bad.replace("{now}", &now.to_string());
        let text = format!("{good_lines}{bad}\n{}", line(300));
        file(folder.path(), "m.lp", text.as_bytes());
        let args = ["import", "m.lp", "--precision", "ms", "--chunk-rows", "100"];
        let (code, said) = failed(folder.path(), &args, "");
        // What came before the bad line's chunk is there, whichever line is bad.
        assert!(code == 70 && said.contains("`m.lp`, line 251") && said.contains(expected), "{code} {said}");
        assert!(said.contains("run the import again") && said.contains("200 rows read"), "{said}");
        assert_eq!(lake_text(folder.path(), "SELECT count(*)::VARCHAR FROM lake.main.m"), "200");
    }
    let said = good(folder.path(), &["import", "m.lp", "--precision", "ms", "--skip-bad-lines"], "");
    assert!(
        said.contains("left out: `m.lp`, line 251")
            && said.contains("252 rows read, 51 stored, 200 in the lake already, 1 left out"),
        "{said}"
    );
}

#[test]
fn an_exported_folder_is_imported_into_another_lake() {
    let (one, other) = (data(), data());
    good(one.path(), &["import", "-", "--format", "influx"], &lines());
    let csv = "time,host,device,used_bytes\n1,h,sda,5\n";
    let csv = csv.replace("\n1,", &format!("\n{},", now_ms() / 1000));
    let said = good(
        one.path(),
        &["import", "-", "--format", "csv", "--measurement", "disks", "--tags", "device", "--precision", "s"],
        &csv,
    );
    assert!(said.contains("1 rows read, 1 stored"), "{said}");
    let said = good(one.path(), &["export", "-o", "out"], "");
    assert_eq!(said.lines().filter(|line| line.starts_with("exported ")).count(), 3, "{said}");
    let files: Vec<String> =
        ["disks", "exported_cpu", "web"].map(|name| format!("{}/out/{name}.parquet", one.path().display())).into();
    let args: Vec<&str> = ["import"].into_iter().chain(files.iter().map(String::as_str)).collect();
    good(other.path(), &args, "");
    assert_eq!(lake_text(other.path(), WEB), WEB_ROWS);
    assert_eq!(lake_text(other.path(), "SELECT device || used_bytes FROM lake.main.disks"), "sda5");
    let output =
        run(one.path(), &["export", "--measurement", "disks", "--format", "csv", "-o", "-", "--since", "-1h"], "");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("ts,host,device,used_bytes\n") && text.ends_with("Z,h,sda,5\n"), "{text}");
    let (code, said) = failed(one.path(), &["export", "-o", "out"], "");
    assert!(code == 70 && said.contains("is there already") && said.contains("--overwrite"), "{code} {said}");
    good(one.path(), &["export", "-o", "out", "--overwrite", "--format", "jsonl", "--compress"], "");
    let lines = one.path().join("out/web.jsonl.zst");
    let third = data();
    let args = ["import", lines.to_str().expect("text"), "--tags", "zone"];
    let said = good(third.path(), &args, "");
    assert!(said.contains("3 rows read, 3 stored"), "{said}");
    assert_eq!(lake_text(third.path(), WEB), WEB_ROWS);
    let text = zstd::decode_all(fs::File::open(&lines).expect("opens")).expect("unpacks");
    let text = String::from_utf8(text).expect("text");
    let given = ["import", "-", "--format", "jsonl", "--measurement", "web"];
    let said = good(third.path(), &given, &text);
    assert!(said.contains("3 rows read, 0 stored, 3 in the lake already"), "{said}");
    let (code, said) = failed(third.path(), &given, &format!("{text}{{\"ts\": }}\n"));
    assert!(
        code == 70
            && said.contains("`, line 4: expected a JSON object (at column 8: expected value)")
            && said.contains("--skip-bad-lines"),
        "{code} {said}"
    );
    let skipping = [&given[..], &["--skip-bad-lines"]].concat();
    let said = good(third.path(), &skipping, &format!("nonsense\n{text}"));
    assert!(said.contains("line 1: expected a JSON object") && said.contains("4 rows read, 0 stored"), "{said}");
}

#[test]
fn summaries_are_exported_with_quantiles() {
    let folder = data();
    let csv: String = (1..=100).map(|n| format!("{},h,{n}\n", now_ms() / 60_000 * 60 - 200 + n % 50)).collect();
    let args = ["import", "-", "--format", "csv", "--measurement", "m", "--precision", "s", "--host", "h"];
    good(folder.path(), &args, &format!("time,host,v\n{csv}"));
    let writer = LakeWriter::open(&LakeConfig::embedded(&folder.path().join("data/lake"))).expect("opens");
    let at_once = RollupLimits { minute_every: std::time::Duration::ZERO, ..RollupLimits::default() };
    writer.roll_up(&at_once, || true).expect("rolls up");
    drop(writer);
    let args =
        ["export", "--measurement", "m", "--tier", "1m", "--quantiles", "0.5,0.99", "-o", "-", "--format", "csv"];
    let text = String::from_utf8(run(folder.path(), &args, "").stdout).expect("text");
    assert!(text.starts_with("ts,host,v_count,v_sum,v_min,v_max,v_p50,v_p99\n"), "{text}");
    assert!(text.lines().count() >= 2, "{text}");
}

#[test]
fn wrong_usage_is_told_before_anything_is_opened() {
    let folder = data();
    file(folder.path(), "m.txt", b"");
    for (args, expected) in [
        (vec!["import", "m.txt"], "name its form with --format"),
        (vec!["import", "-", "--format", "parquet"], "can't be read from the standard input"),
        (vec!["import", "-", "--format", "csv"], "name the measurement with --measurement"),
        (vec!["import", "m.csv", "--measurement", "A b"], "--measurement: expected a name"),
        (vec!["export"], "name a measurement with --measurement"),
        (vec!["export", "--measurement", "m", "--quantiles", "0.5"], "add --tier 1m or --tier 1h"),
        (
            vec!["export", "--measurement", "m", "--tier", "1h", "--quantiles", "0.5,95"],
            "--quantiles `95`: expected numbers from 0 to 1, each once, such as `0.5,0.95,0.99`",
        ),
        (vec!["export", "--measurement", "m", "--tier", "1h", "--quantiles", "0.5,0.50"], "--quantiles `0.50`"),
        (vec!["export", "--measurement", "m", "--since", "yesterday"], "--since: expected RFC 3339"),
    ] {
        let (code, said) = failed(folder.path(), &args, "");
        assert!(code == 64 && said.contains(expected), "{args:?}: {code} {said}");
    }
    assert!(!folder.path().join("data").exists());
    let (code, said) = failed(folder.path(), &["export", "--measurement", "m"], "");
    assert!(code == 70 && said.contains("does not exist yet"), "{code} {said}");
}

#[tokio::test]
async fn an_interrupted_export_leaves_no_file() {
    let folder = data();
    let now = now_ms();
    let rows: String = (0..300_000).map(|n| format!("{},h{},{n},{}\n", now - 400_000 + n, n % 7, n / 3)).collect();
    let args = ["import", "-", "--format", "csv", "--measurement", "m", "--precision", "ms"];
    good(folder.path(), &args, &format!("time,host,a,b\n{rows}"));
    fs::create_dir(folder.path().join("out")).expect("made");
    let child = plimsoll()
        .current_dir(folder.path())
        .args(["export", "--measurement", "m", "-o", "out/m.csv"])
        .env("PLIMSOLL_LAKE__THREADS", "1")
        .stderr(Stdio::null())
        .spawn()
        .expect("plimsoll starts");
    let mut process = Process(child);
    let entries = || fs::read_dir(folder.path().join("out")).expect("a folder").count();
    eventually("the export to begin", LIMIT, async || (entries() > 0).then_some(())).await;
    process.signal(rustix::process::Signal::INT);
    let status = eventually("the export to end", LIMIT, async || process.0.try_wait().expect("a child")).await;
    let left: Vec<_> =
        fs::read_dir(folder.path().join("out")).expect("a folder").flatten().map(|e| e.file_name()).collect();
    // It may have been done before the signal came.
    if status.success() {
        assert_eq!(left, ["m.csv"]);
    } else {
        assert!(left.is_empty() && status.code() == Some(70), "{left:?} {status}");
    }
}
