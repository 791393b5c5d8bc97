//! What an application has in the store, as a controller sees it: listed, and collected, through the service.

mod common;

use common::{Fixture, LIMIT, collect_orphans, intact, service::Service};
use migration_agent::service::detail_of;
use migration_harness::{process, workload::Workload};
use migration_proto::agent::{
    CollectRequest, CollectResponse, ListCheckpointsRequest, ListCheckpointsResponse, Reason,
};

fn listed(service: &Service, app: &str) -> ListCheckpointsResponse {
    let request = ListCheckpointsRequest { app: app.to_owned() };
    service.ask(async |mut client| client.list_checkpoints(request).await).unwrap().into_inner()
}

fn collect(service: &Service, request: CollectRequest) -> Result<CollectResponse, Reason> {
    let answer = service.ask(async |mut client| client.collect(request).await);
    answer.map(|answer| answer.into_inner()).map_err(|status| detail_of(&status).unwrap().reason())
}

fn of(app: &str) -> CollectRequest {
    CollectRequest { app: app.to_owned(), ..CollectRequest::default() }
}

#[test]
fn checkpoints_are_listed_kept_by_rule_and_all_deleted_in_the_end() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let service = Service::start(&fixture, &[]);
        assert_eq!(listed(&service, "app"), ListCheckpointsResponse::default());
        let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
        let (address, pid) = (service.address(), workload.pid().to_string());
        let call = ["checkpoint", "--app", "app", "--pid", &pid, "--agent", &address];
        let taken: Vec<String> = (0..4)
            .map(|_| {
                workload.act("mutate 0.05").unwrap();
                let report =
                    fixture.json(&[&call[..], &["--leave-running", "--max-chain-depth", "2"]].concat());
                report["checkpoint"].as_str().unwrap().to_owned()
            })
            .collect();
        fixture.json(&["pin", "--app", "app", "--checkpoint", &taken[0], "--name", "kept"]);

        let found = listed(&service, "app");

        let ids: Vec<&str> = found.checkpoints.iter().map(|one| one.checkpoint.as_str()).collect();
        assert_eq!(ids, taken, "oldest first");
        let depths: Vec<u32> = found.checkpoints.iter().map(|one| one.depth).collect();
        assert_eq!(depths, [0, 1, 2, 0], "the limit of the request holds");
        assert_eq!(found.checkpoints[1].parent, taken[0]);
        assert_eq!(found.checkpoints.iter().filter(|one| one.pinned).count(), 1);
        assert!(found.checkpoints.windows(2).all(|two| two[0].created_unix_ms <= two[1].created_unix_ms));
        let pages = 16 << 20;
        assert!(found.stored_bytes > pages && found.stored_bytes < 4 * pages, "{}", found.stored_bytes);

        // Without a rule, or with two that contradict each other, nothing is deleted.
        assert_eq!(collect(&service, of("app")), Err(Reason::Usage));
        assert_eq!(collect(&service, CollectRequest { all: true, keep: 1, ..of("app") }), Err(Reason::Usage));
        assert_eq!(listed(&service, "app"), found);

        let collected = collect(&service, CollectRequest { keep: 1, ..of("app") }).unwrap();
        assert_eq!(collected.deleted, [&*taken[2], &*taken[1]], "the newest and the pinned one stay");
        assert!(collected.freed_bytes > 0);
        let left = listed(&service, "app");
        let ids: Vec<&str> = left.checkpoints.iter().map(|one| one.checkpoint.as_str()).collect();
        assert_eq!(ids, [&*taken[0], &*taken[3]]);
        assert!(left.stored_bytes < found.stored_bytes);
        for id in ids {
            fixture.json(&["verify", "--app", "app", "--checkpoint", id, "--read-data"]);
        }
        intact(&workload);

        let collected = collect(&service, CollectRequest { all: true, ..of("app") }).unwrap();
        assert_eq!((collected.deleted, collected.kept), (vec![taken[3].clone()], vec![taken[0].clone()]));
        fixture.json(&["unpin", "--app", "app", "--name", "kept"]);
        collect(&service, CollectRequest { all: true, ..of("app") }).unwrap();
        assert_eq!(listed(&service, "app"), ListCheckpointsResponse::default());
        assert!(
            !fixture.objects().iter().any(|object| object.contains("/packs/")),
            "{:?}",
            fixture.objects()
        );
        // Said again, it changes nothing; and the application can begin anew.
        assert_eq!(
            collect(&service, CollectRequest { all: true, ..of("app") }),
            Ok(CollectResponse::default())
        );
        fixture.json(&call);
        assert!(process::wait_gone(workload.pid(), LIMIT));
        collect_orphans();
        fixture.json(&["restore", "--app", "app", "--agent", &address]);
        intact(&workload);
    }
}
