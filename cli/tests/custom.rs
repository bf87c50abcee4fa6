//! Custom metrics on their way from a configuration file through the lake to the API.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    path::Path,
    thread,
};

use plimsoll_lake::{Access, Lake, LakeConfig};
use plimsoll_nats::testing::eventually;
use support::{LIMIT, Up, data, failing, install_crypto};

/// Serves one page to whoever asks, and returns its address.
fn exporter(page: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", page.len());
            let _ = stream.write_all(format!("{head}{page}").as_bytes());
        }
    });
    format!("http://{address}/metrics")
}

fn lake_text(data: &Path, sql: &str) -> String {
    let lake = Lake::open(&LakeConfig::embedded(&data.join("lake")), Access::Read).expect("a lake");
    lake.connection().query_row(sql, [], |row| row.get(0)).expect("a text")
}

/// The newest value of a field in `/api/stats`; none before there is one.
async fn last(up: &Up, host: &str, measurement: &str, field: &str) -> Option<f64> {
    let path = format!("{}/api/stats/{host}?measurement={measurement}&field={field}&from=-1h", up.http);
    let stats = support::get(&path).await.ok()?;
    stats["series"].as_array()?.iter().find_map(|series| series["last"].as_f64())
}

#[tokio::test]
async fn custom_metrics_reach_the_lake_and_the_api() {
    install_crypto();
    let data = data();
    let url = exporter("queue_depth_jobs{queue=\"mail\"} 12.5\nqueue_depth_jobs{queue=\"print\"} 3\n");
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let config = data.path().join("plimsoll.toml");
    let text = format!(
        "[[agent.exec]]\nname = 'backup'\ncommand = ['/bin/echo', '{{\"age_seconds\": 77, \"ok\": true}}']\nformat = 'json'\n\
         interval = '1s'\n\
         [[agent.exec]]\nname = 'broken'\ncommand = ['/bin/false']\ninterval = '1s'\n\
         [[agent.scrape]]\nname = 'queues'\nurl = '{url}'\ninterval = '1s'\n\
         [agent.listen]\nstatsd_udp = '127.0.0.1:{port}'\ninterval = '1s'\n"
    );
    std::fs::write(&config, text).expect("written");
    let up = Up::start(data.path(), &["--config", &config.display().to_string()], &[]).await;
    let host = up.host().await;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for (measurement, field, expected) in [
        ("backup", "age_seconds", 77.0),
        ("queue_depth", "queue_depth_jobs", 12.5),
        ("shop", "basket", 42.0),
        ("exec", "values", 2.0),
        ("scrape", "values", 2.0),
    ] {
        eventually(&format!("{measurement}.{field}"), LIMIT, async || {
            // Nobody may listen yet.
            let _ = socket.send_to(b"shop.basket:42|g", ("127.0.0.1", port));
            last(&up, &host, measurement, field).await.filter(|value| (value - expected).abs() < 1e-9)
        })
        .await;
    }
    up.process.stop().await;
    for (text, table, expected) in [
        ("job || ' ' || queue || ' ' || queue_depth_jobs", "queue_depth", "queues mail 12.5, queues print 3.0"),
        ("age_seconds || ' ' || ok", "backup", "77.0 true"),
        ("job || ' ' || up", "exec", "backup true, broken false"),
        ("basket", "shop", "42.0"),
    ] {
        let sql = format!(
            "SELECT string_agg(row, ', ' ORDER BY row) FROM (SELECT DISTINCT ({text})::VARCHAR AS row FROM lake.{table})"
        );
        assert_eq!(lake_text(data.path(), &sql), expected, "{table}");
    }
}

#[tokio::test]
async fn no_variable_names_a_command() {
    let data = data();
    for name in ["PLIMSOLL_AGENT__EXEC", "PLIMSOLL_AGENT__EXEC__0__COMMAND", "PLIMSOLL_UP__AGENT__EXEC"] {
        let (code, text) = failing(data.path(), &[], &[(name, "[{name=\"x\",command=[\"true\"]}]")]).await;
        assert!(
            code == 64 && text.contains("`agent.exec`: expected [[exec]] tables in the configuration file"),
            "{text}"
        );
        assert!(text.contains(&format!("(from {name})")), "{text}");
    }
}
