//! Documents as the clouds publish them, and documents as they do not.

use migration_monitor::{Cloud, MAX_DOCUMENT, Notice, NoticeError, NoticeKind, aws, azure, gcp};
use proptest::prelude::*;

fn simple(source: Cloud, kind: NoticeKind, deadline: Option<&str>) -> Notice {
    let deadline = deadline.map(|time| time.parse().expect("an RFC 3339 time"));
    Notice { source, kind, deadline, announced: None, event_id: None, resources: Vec::new() }
}

#[test]
fn a_spot_interruption_has_its_action_and_its_deadline() {
    for (word, kind) in [
        ("terminate", NoticeKind::Terminate),
        ("stop", NoticeKind::Stop),
        ("hibernate", NoticeKind::Hibernate),
    ] {
        let document = format!(r#"{{"action": "{word}", "time": "2026-09-18T08:22:00Z"}}"#);
        let notice = aws::spot_instance_action(document.as_bytes()).unwrap();
        assert_eq!(notice, simple(Cloud::Aws, kind, Some("2026-09-18T08:22:00Z")));
    }
}

#[test]
fn an_unknown_spot_action_is_still_a_notice() {
    let notice =
        aws::spot_instance_action(br#"{"action":"evaporate","time":"2026-09-18T08:22:00Z","new":1}"#)
            .unwrap();
    assert_eq!(notice.kind, NoticeKind::Unrecognised("evaporate".into()));
    assert!(notice.deadline.is_some());
}

#[test]
fn a_rebalance_recommendation_has_no_deadline() {
    let notice = aws::rebalance_recommendation(br#"{"noticeTime":"2026-11-05T08:22:00Z"}"#).unwrap();
    let announced = Some("2026-11-05T08:22:00Z".parse().unwrap());
    assert_eq!(notice, Notice { announced, ..simple(Cloud::Aws, NoticeKind::RebalanceRecommended, None) });
}

#[test]
fn scheduled_maintenance_has_an_id_and_its_beginning_and_ends_when_it_is_over() {
    let document = |code: &str, state: &str| {
        format!(
            r#"[{{"NotBefore": "21 Jan 2019 09:00:43 GMT", "Code": "{code}", "Description": "scheduled", "EventId": "e-1",
                "NotAfter": "21 Jan 2019 09:17:23 GMT", "State": "{state}"}}]"#
        )
    };
    for (code, kind) in [
        ("instance-stop", NoticeKind::Stop),
        ("instance-retirement", NoticeKind::Stop),
        ("system-reboot", NoticeKind::Reboot),
        ("instance-reboot", NoticeKind::Reboot),
        ("system-maintenance", NoticeKind::Pause),
        ("transmogrification", NoticeKind::Unrecognised("transmogrification".into())),
    ] {
        let notices = aws::scheduled_maintenance(document(code, "active").as_bytes()).unwrap();
        let event_id = Some("e-1".to_owned());
        let expected = Notice { event_id, ..simple(Cloud::Aws, kind, Some("2019-01-21T09:00:43Z")) };
        assert_eq!(notices, [expected]);
        for over in ["completed", "canceled"] {
            assert_eq!(aws::scheduled_maintenance(document(code, over).as_bytes()).unwrap(), []);
        }
    }
    assert_eq!(aws::scheduled_maintenance(b"[]").unwrap(), []);
    assert!(aws::scheduled_maintenance(b"{}").is_err());
}

#[test]
fn a_notice_read_twice_has_one_key_and_two_notices_have_two() {
    let spot = |time: &str| {
        let document = format!(r#"{{"action":"stop","time":"{time}"}}"#);
        aws::spot_instance_action(document.as_bytes()).unwrap().key()
    };
    assert_eq!(spot("2026-09-18T08:22:00Z"), spot("2026-09-18T08:22:00Z"));
    assert_ne!(spot("2026-09-18T08:22:00Z"), spot("2026-09-18T08:23:00Z"));
    let scheduled = &azure::scheduled_events(AZURE.as_bytes()).unwrap()[0];
    let started = AZURE.replace("Mon, 19 Sep 2016 18:29:47 GMT", "");
    let started = &azure::scheduled_events(started.as_bytes()).unwrap()[0];
    assert_ne!(scheduled.deadline, started.deadline);
    assert_eq!(scheduled.key(), started.key(), "it is the same event before and after its beginning");
}

#[test]
fn an_aws_document_without_a_readable_time_is_refused() {
    for document in [r#"{"action":"stop","time":"soon"}"#, r#"{"action":"stop","time":""}"#] {
        let error = aws::spot_instance_action(document.as_bytes()).unwrap_err();
        assert!(matches!(error, NoticeError::NotATime { .. }), "{error}");
    }
    assert!(matches!(
        aws::spot_instance_action(br#"{"action":"stop"}"#),
        Err(NoticeError::NotTheDocument(_))
    ));
    assert!(aws::rebalance_recommendation(b"<html>404</html>").is_err());
}

#[test]
fn a_preemption_is_true_and_nothing_else() {
    assert_eq!(gcp::preempted(b"TRUE\n").unwrap(), Some(simple(Cloud::Gcp, NoticeKind::Terminate, None)));
    assert_eq!(gcp::preempted(b"FALSE").unwrap(), None);
    for value in ["", "true", "1", "TRUE FALSE", "\u{fffd}"] {
        assert!(gcp::preempted(value.as_bytes()).is_err(), "{value:?}");
    }
    assert!(gcp::preempted(&[0xff, 0xfe]).is_err());
}

#[test]
fn every_maintenance_event_but_none_is_a_notice() {
    assert_eq!(gcp::maintenance_event(b"NONE").unwrap(), None);
    for (value, kind) in [
        ("TERMINATE_ON_HOST_MAINTENANCE", NoticeKind::Terminate),
        ("MIGRATE_ON_HOST_MAINTENANCE", NoticeKind::Pause),
        ("SHRINK", NoticeKind::Unrecognised("SHRINK".into())),
    ] {
        assert_eq!(gcp::maintenance_event(value.as_bytes()).unwrap(), Some(simple(Cloud::Gcp, kind, None)));
    }
    assert!(gcp::maintenance_event(b" ").is_err());
}

const AZURE: &str = r#"{
    "DocumentIncarnation": 7,
    "Events": [
        {"EventId": "A-1", "EventType": "Preempt", "ResourceType": "VirtualMachine", "Resources": ["web_0", "web_3"],
         "EventStatus": "Scheduled", "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT", "Description": "",
         "EventSource": "Platform", "DurationInSeconds": -1},
        {"EventId": "B-2", "EventType": "Freeze", "ResourceType": "VirtualMachine", "Resources": ["web_1"],
         "EventStatus": "Started", "NotBefore": "", "Description": "", "EventSource": "User", "DurationInSeconds": 5}
    ]
}"#;

#[test]
fn azure_events_keep_their_order_ids_and_machines() {
    let notices = azure::scheduled_events(AZURE.as_bytes()).unwrap();
    assert_eq!(
        notices,
        [
            Notice {
                event_id: Some("A-1".into()),
                resources: vec!["web_0".into(), "web_3".into()],
                ..simple(Cloud::Azure, NoticeKind::Terminate, Some("2016-09-19T18:29:47Z"))
            },
            Notice {
                event_id: Some("B-2".into()),
                resources: vec!["web_1".into()],
                ..simple(Cloud::Azure, NoticeKind::Pause, None)
            },
        ]
    );
}

#[test]
fn an_empty_azure_document_announces_nothing() {
    assert_eq!(azure::scheduled_events(br#"{"DocumentIncarnation":1,"Events":[]}"#).unwrap(), []);
}

#[test]
fn every_azure_event_type_is_a_notice() {
    for (word, kind) in [
        ("Terminate", NoticeKind::Terminate),
        ("Reboot", NoticeKind::Reboot),
        ("Redeploy", NoticeKind::Redeploy),
        ("Melt", NoticeKind::Unrecognised("Melt".into())),
    ] {
        let document = AZURE.replace("Preempt", word);
        assert_eq!(azure::scheduled_events(document.as_bytes()).unwrap()[0].kind, kind);
    }
}

#[test]
fn a_document_over_the_limit_is_refused_before_it_is_parsed() {
    let long = vec![b' '; MAX_DOCUMENT + 1];
    assert!(matches!(azure::scheduled_events(&long), Err(NoticeError::TooLong(_))));
    assert!(matches!(aws::spot_instance_action(&long), Err(NoticeError::TooLong(_))));
    assert!(matches!(gcp::preempted(&long), Err(NoticeError::TooLong(_))));
}

proptest! {
    #[test]
    fn any_time_survives_an_aws_document(second in 0_i64..4_102_444_800) {
        let time = jiff::Timestamp::from_second(second).unwrap();
        let document = format!(r#"{{"action":"terminate","time":"{time}"}}"#);
        prop_assert_eq!(aws::spot_instance_action(document.as_bytes()).unwrap().deadline, Some(time));
    }

    #[test]
    fn any_time_survives_an_azure_document(second in 0_i64..4_102_444_800) {
        let time = jiff::Timestamp::from_second(second).unwrap();
        let text = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap();
        let document = AZURE.replace("Mon, 19 Sep 2016 18:29:47 GMT", &text);
        prop_assert_eq!(azure::scheduled_events(document.as_bytes()).unwrap()[0].deadline, Some(time));
    }

    #[test]
    fn a_truncated_azure_document_is_an_error_and_never_no_notice(length in 0..AZURE.len()) {
        prop_assert!(azure::scheduled_events(&AZURE.as_bytes()[..length]).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = aws::spot_instance_action(&bytes);
        let _ = aws::rebalance_recommendation(&bytes);
        let _ = aws::scheduled_maintenance(&bytes);
        let _ = azure::scheduled_events(&bytes);
        let _ = gcp::preempted(&bytes);
        let _ = gcp::maintenance_event(&bytes);
    }
}
