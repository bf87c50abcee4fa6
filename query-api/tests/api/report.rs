//! What the service tells of itself: as the measurement `plimsoll`, and on `/metrics`.

use futures_util::StreamExt;
use plimsoll_nats::{
    Batch, Column, HostId, Name,
    async_nats::Subscriber,
    report::{MEASUREMENT, differences},
};

use crate::harness::{Harness, PATIENCE};

#[tokio::test]
async fn the_service_publishes_what_it_does() {
    let harness = Harness::reporting().await;
    let mut reports = reports(&harness).await;
    harness.publish(&harness.cpu("web-1", 1)).await;
    harness.counted(1).await;
    let url = harness.url.replace("http", "ws") + "/ws/live";
    let (_socket, _) = tokio_tungstenite::connect_async(url).await.expect("connects");
    assert_eq!(harness.get("/nowhere").await.status(), 404);
    let next = async {
        loop {
            let batch = next(&mut reports).await;
            if integer(&batch, "live_subscribers") == 1 {
                return batch;
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, next).await.expect("a report of what was done");
    assert_eq!(differences(&told, "query_api"), Vec::<String>::new());
    let tag = |name: &str| told.tags[name].clone();
    assert_eq!((tag("service"), tag("partition")), (vec!["query_api".to_owned()], vec!["total".to_owned()]));
    // The sample, and maybe reports.
    assert!(integer(&told, "messages_total") >= 1 && integer(&told, "tail_bytes") > 0, "{told:?}");
    assert!(integer(&told, "requests_total") >= 3 && integer(&told, "queries_total") >= 1, "{told:?}");
    for idle in
        ["queries_running", "queries_waiting", "refused_requests_total", "dropped_reports_total", "lag_messages"]
    {
        assert_eq!(integer(&told, idle), 0, "{idle}");
    }
    let metrics = harness.get("/metrics").await.text().await.expect("text");
    for line in [
        "plimsoll_query_api_queries_running 0.0",
        "plimsoll_query_api_queries_waiting 0.0",
        "plimsoll_query_api_lag_seconds 0.0",
        "plimsoll_query_api_live_subscribers 1",
        "plimsoll_query_api_refused_requests_total 0",
        "plimsoll_query_api_slow_subscribers_total 0",
        "plimsoll_query_api_cancelled_queries_total 0",
        "plimsoll_query_api_timed_out_queries_total 0",
    ] {
        assert!(metrics.lines().any(|told| told == line), "{line} in {metrics}");
    }
    harness.stop().await;
}

/// What services tell of themselves from now on.
pub async fn reports(harness: &Harness) -> Subscriber {
    harness.client.nats.subscribe("plimsoll.metrics.*.plimsoll").await.expect("subscribes")
}

/// The next report.
pub async fn next(reports: &mut Subscriber) -> Batch {
    let message = reports.next().await.expect("a report");
    let host = HostId::parse(message.subject.split('.').nth(2).expect("a host")).expect("a host");
    let measurement = Name::parse(MEASUREMENT).expect("a name");
    Batch::decode(&host, &measurement, message.headers.as_ref(), &message.payload).expect("a batch")
}

pub fn integer(batch: &Batch, field: &str) -> i64 {
    match batch.fields.get(field) {
        Some(Column::Integer(values)) => values[0].expect("a value"),
        other => panic!("{field}: {other:?}"),
    }
}
