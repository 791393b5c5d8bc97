//! The rules of the real services that clients trip over.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use migration_metadata::{Cloud, Fault, MetadataServer, ScheduledEvent};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Status, head and body of an answer; `None` when there is none.
type Answer = Option<(u16, String, String)>;

async fn start() -> MetadataServer {
    MetadataServer::start(([127, 0, 0, 1], 0).into()).await.unwrap()
}

async fn ask(server: &MetadataServer, request: &str, headers: &[&str], body: &str) -> Answer {
    let address: SocketAddr = server.url().trim_start_matches("http://").parse().unwrap();
    let mut stream = TcpStream::connect(address).await.ok()?;
    let mut text =
        format!("{request} HTTP/1.1\r\nhost: m\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|header| text.push_str(&format!("{header}\r\n")));
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, head.to_owned(), body.to_owned()))
}

async fn status(server: &MetadataServer, request: &str, headers: &[&str]) -> u16 {
    ask(server, request, headers, "").await.map_or(0, |(status, ..)| status)
}

async fn token(server: &MetadataServer, seconds: u64) -> String {
    let life = format!("X-aws-ec2-metadata-token-ttl-seconds: {seconds}");
    let (status, head, body) = ask(server, "PUT /latest/api/token", &[&life], "").await.unwrap();
    assert_eq!(status, 200);
    assert!(head.contains(&format!("x-aws-ec2-metadata-token-ttl-seconds: {seconds}")), "{head}");
    format!("X-aws-ec2-metadata-token: {body}")
}

const SPOT: &str = "GET /latest/meta-data/spot/instance-action";
const FLAVOR: &str = "Metadata-Flavor: Google";
const PREEMPTED: &str = "GET /computeMetadata/v1/instance/preempted";
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";

#[tokio::test]
async fn aws_wants_a_token_and_a_token_ends() {
    let server = start().await;
    for headers in [&[][..], &["X-aws-ec2-metadata-token: made-up"]] {
        assert_eq!(status(&server, SPOT, headers).await, 401);
    }
    for bad in
        ["X-aws-ec2-metadata-token-ttl-seconds: 0", "X-aws-ec2-metadata-token-ttl-seconds: 21601", "X: y"]
    {
        assert_eq!(status(&server, "PUT /latest/api/token", &[bad]).await, 400, "{bad}");
    }
    let forwarded = ["X-aws-ec2-metadata-token-ttl-seconds: 60", "X-Forwarded-For: 10.0.0.1"];
    assert_eq!(status(&server, "PUT /latest/api/token", &forwarded).await, 403);
    let short = token(&server, 1).await;
    assert_eq!(status(&server, SPOT, &[&short]).await, 404);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(status(&server, SPOT, &[&short]).await, 401);
    let long = token(&server, 600).await;
    assert_eq!(status(&server, SPOT, &[&long]).await, 404);
    server.aws_revoke_tokens();
    assert_eq!(status(&server, SPOT, &[&long]).await, 401);
}

#[tokio::test]
async fn aws_announces_nothing_until_it_does() {
    let server = start().await;
    let token = token(&server, 600).await;
    let time: Timestamp = "2026-09-18T08:22:00Z".parse().unwrap();
    assert_eq!(status(&server, SPOT, &[&token]).await, 404);
    server.aws_spot(Some(("stop", time)));
    let (_, _, body) = ask(&server, SPOT, &[&token], "").await.unwrap();
    assert_eq!(body, r#"{"action":"stop","time":"2026-09-18T08:22:00Z"}"#);
    server.aws_spot(None);
    assert_eq!(status(&server, SPOT, &[&token]).await, 404);
    let maintenance = "GET /latest/meta-data/events/maintenance/scheduled";
    assert_eq!(ask(&server, maintenance, &[&token], "").await.unwrap().2, "[]");
    server.aws_maintenance("m-1", Some(("system-reboot", time)));
    let body = ask(&server, maintenance, &[&token], "").await.unwrap().2;
    assert!(body.contains(r#""NotBefore":"18 Sep 2026 08:22:00 GMT""#), "{body}");
}

#[tokio::test]
async fn google_wants_its_header_and_answers_when_something_changes() {
    let server = start().await;
    assert_eq!(status(&server, PREEMPTED, &[]).await, 403);
    let (_, head, body) = ask(&server, PREEMPTED, &[FLAVOR], "").await.unwrap();
    assert_eq!(body, "FALSE");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let waiting = format!("{PREEMPTED}?wait_for_change=true&timeout_sec=1&last_etag={tag}");
    let begun = Instant::now();
    assert_eq!(ask(&server, &waiting, &[FLAVOR], "").await.unwrap().2, "FALSE");
    assert!(begun.elapsed() >= Duration::from_secs(1), "it waits as long as it was asked to");
    let waiting = format!("{PREEMPTED}?wait_for_change=true&timeout_sec=600&last_etag={tag}");
    let headers = [FLAVOR];
    let (answer, ()) = tokio::join!(ask(&server, &waiting, &headers, ""), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.gcp_preempted(true);
    });
    assert_eq!(answer.unwrap().2, "TRUE");
    assert_eq!(
        ask(&server, &waiting, &headers, "").await.unwrap().2,
        "TRUE",
        "an old tag is answered at once"
    );
}

#[tokio::test]
async fn azure_wants_header_and_version_and_begins_what_is_acknowledged() {
    let server = start().await;
    let (get, post) = (format!("GET {EVENTS}"), format!("POST {EVENTS}"));
    assert_eq!(status(&server, &get, &[]).await, 400);
    assert_eq!(status(&server, "GET /metadata/scheduledevents", &["Metadata: true"]).await, 400);
    let headers = ["Metadata: true"];
    let empty = ask(&server, &get, &headers, "").await.unwrap().2;
    assert_eq!(empty, r#"{"DocumentIncarnation":1,"Events":[]}"#);
    server.azure_schedule(ScheduledEvent {
        id: "e-1".into(),
        kind: "Preempt".into(),
        resources: vec!["node_0".into()],
        not_before: Some(Timestamp::now() + SignedDuration::from_secs(30)),
    });
    let scheduled = ask(&server, &get, &headers, "").await.unwrap().2;
    assert!(
        scheduled.contains(r#""DocumentIncarnation":2"#) && scheduled.contains(r#""Scheduled""#),
        "{scheduled}"
    );
    let start = |id: &str| format!(r#"{{"StartRequests":[{{"EventId":"{id}"}}]}}"#);
    assert_eq!(ask(&server, &post, &headers, &start("e-2")).await.unwrap().0, 400);
    assert_eq!(ask(&server, &post, &headers, &start("e-1")).await.unwrap().0, 200);
    let started = ask(&server, &get, &headers, "").await.unwrap().2;
    assert!(started.contains(r#""Started""#) && started.contains(r#""NotBefore":"""#), "{started}");
    assert_eq!(server.azure_acknowledged(), ["e-1"]);
}

#[tokio::test]
async fn a_cloud_that_is_not_served_is_not_found() {
    let server = start().await;
    server.serve_only(Cloud::Gcp);
    assert_eq!(status(&server, "PUT /latest/api/token", &[]).await, 404);
    assert_eq!(status(&server, &format!("GET {EVENTS}"), &["Metadata: true"]).await, 404);
    assert_eq!(status(&server, "GET /", &[FLAVOR]).await, 200);
}

#[tokio::test]
async fn it_misbehaves_until_it_is_told_not_to() {
    let server = start().await;
    let headers = [FLAVOR];
    for (fault, expected) in [
        (Fault::Garbage, 200),
        (Fault::Status(hyper::StatusCode::SERVICE_UNAVAILABLE), 503),
        (Fault::Drop, 0),
        (Fault::Slow(Duration::from_millis(300)), 200),
        (Fault::Down, 0),
    ] {
        server.fault(fault);
        if fault == Fault::Down {
            // It takes a moment until the listener is gone.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let begun = Instant::now();
        let answer = ask(&server, PREEMPTED, &headers, "").await;
        assert_eq!(answer.as_ref().map_or(0, |(status, ..)| *status), expected, "{fault:?}");
        if let Fault::Slow(time) = fault {
            assert!(begun.elapsed() >= time);
        } else {
            assert!(answer.is_none_or(|(_, _, body)| body != "FALSE"), "{fault:?}");
        }
    }
    server.fault(None);
    let begun = Instant::now();
    while status(&server, PREEMPTED, &headers).await != 200 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it listens again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn people_rehearse_with_requests() {
    let server = start().await;
    let token = token(&server, 600).await;
    assert_eq!(status(&server, "POST /control/aws/spot?action=hibernate&in=60", &[]).await, 200);
    assert!(ask(&server, SPOT, &[&token], "").await.unwrap().2.contains("hibernate"));
    assert_eq!(status(&server, "DELETE /control/aws/spot", &[]).await, 200);
    assert_eq!(status(&server, SPOT, &[&token]).await, 404);
    assert_eq!(status(&server, "POST /control/gcp/preempted", &[]).await, 200);
    assert_eq!(ask(&server, PREEMPTED, &[FLAVOR], "").await.unwrap().2, "TRUE");
    assert_eq!(status(&server, "POST /control/azure/event?id=x-1&type=Reboot&in=5", &[]).await, 200);
    let events = ask(&server, &format!("GET {EVENTS}"), &["Metadata: true"], "").await.unwrap().2;
    assert!(events.contains("x-1") && events.contains("Reboot"), "{events}");
    for bad in ["POST /control/aws/spot?in=soon", "POST /control/fault?kind=odd"] {
        assert_eq!(status(&server, bad, &[]).await, 400, "{bad}");
    }
    assert_eq!(status(&server, "POST /control/fault?kind=unauthorized&for=1", &[]).await, 200);
    assert_eq!(status(&server, PREEMPTED, &[FLAVOR]).await, 401);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(status(&server, PREEMPTED, &[FLAVOR]).await, 200);
    let asked = ask(&server, "GET /control/requests", &[], "").await.unwrap().2;
    assert!(
        asked.contains(r#""request":"GET /computeMetadata/v1/instance/preempted","status":401"#),
        "{asked}"
    );
}
