//! Who is let in over TCP, and what they may touch. Certificates are real, and so are the connections.

mod common;

use std::{fs, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use common::{
    Fixture, LIMIT, collect_orphans, intact,
    service::{SOON, Service},
};
use lazy_pages::format::Manifest;
use migration_agent::{
    client::{self, AgentAddress},
    service::tls::Files,
};
use migration_harness::{process, workload::Workload};
use migration_proto::agent::{
    FinalDumpRequest, FinishHandoverRequest, ListCheckpointsRequest, ListHandoversRequest,
    ListOperationsRequest, ListOperationsResponse, ReadFramesRequest, Strategy, TakeBackRequest,
    agent_client::AgentClient, handovers_client::HandoversClient, operation::Outcome,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tonic::{Code, transport::Channel};

const OPERATOR: &str = "operator.example";

/// An authority, and certificates of it in a directory.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new(fixture: &Fixture, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = fixture.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate with these names, to be shown to whom this authority vouches for.
    fn issue(&self, file: &str, names: &[SanType]) -> Files {
        self.issue_until(file, names, 2099)
    }

    fn issue_until(&self, file: &str, names: &[SanType], year: i32) -> Files {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            cert: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
            ca: self.ca(),
        };
        // In one step, as a secret that is replaced.
        let put = |path: &PathBuf, text: String| {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, path).unwrap();
        };
        put(&files.key, key.serialize_pem());
        put(&files.cert, certificate.pem());
        files
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// A service over TCP, and the authority that its clients come from.
struct Served {
    service: Service,
    authority: Authority,
    log: PathBuf,
}

impl Served {
    fn new(fixture: &Fixture, allowed: &[&str]) -> Self {
        let authority = Authority::new(fixture, "authority");
        let files = authority.issue("server", &[dns("localhost"), SanType::IpAddress([127, 0, 0, 1].into())]);
        let log = fixture.path().join("serve.log");
        let mut command = fixture.agent(&["serve", "--json", "--listen", "127.0.0.1:0"]);
        command.arg("--tls-cert").arg(&files.cert).arg("--tls-key").arg(&files.key);
        command.arg("--tls-ca").arg(&files.ca);
        for name in allowed {
            command.args(["--allow-client", name]);
        }
        let socket = fixture.path().join("run/agent.sock");
        command.arg("--socket").arg(&socket).arg("--state-dir").arg(fixture.path().join("state"));
        command.stderr(Stdio::from(fs::File::create(&log).unwrap()));
        Self { service: Service::spawn(command, socket), authority, log }
    }

    fn tcp(&self) -> SocketAddr {
        self.service.reached["tcp"].as_str().unwrap().parse().unwrap()
    }

    fn address(&self) -> String {
        format!("https://localhost:{}", self.tcp().port())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The options of a command that asks with these files.
    fn through<'a>(&self, files: &'a Files) -> Vec<String> {
        let path = |path: &'a PathBuf| path.to_str().unwrap().to_owned();
        let [agent, cert, key, ca] = ["--agent", "--tls-cert", "--tls-key", "--tls-ca"].map(str::to_owned);
        vec![agent, self.address(), cert, path(&files.cert), key, path(&files.key), ca, path(&files.ca)]
    }

    /// What a client with these files learns when it asks for the operations.
    async fn list(&self, files: &Files) -> Result<ListOperationsResponse, String> {
        let address: AgentAddress = self.address().parse().unwrap();
        let mut agent = client::connect(&address, Some(files)).await.map_err(|error| error.to_string())?;
        list(&mut agent).await
    }

    fn lists(&self, files: &Files) -> Result<ListOperationsResponse, String> {
        runtime().block_on(self.list(files))
    }

    /// How many checkpoints of an application there are, as far as this client may know.
    fn stored(&self, files: &Files, app: &str) -> Result<usize, String> {
        let address: AgentAddress = self.address().parse().unwrap();
        let request = ListCheckpointsRequest { app: app.to_owned() };
        runtime().block_on(async {
            let mut agent =
                client::connect(&address, Some(files)).await.map_err(|error| error.to_string())?;
            let listed = agent.list_checkpoints(request).await.map_err(|status| status.to_string())?;
            Ok(listed.into_inner().checkpoints.len())
        })
    }
}

async fn list(agent: &mut AgentClient<Channel>) -> Result<ListOperationsResponse, String> {
    let answer = agent.list_operations(ListOperationsRequest::default()).await;
    answer.map(|answer| answer.into_inner()).map_err(|status| status.to_string())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn words<'a>(first: &[&'a str], rest: &'a [String]) -> Vec<&'a str> {
    first.iter().copied().chain(rest.iter().map(String::as_str)).collect()
}

#[test]
fn who_shows_no_good_certificate_is_refused_and_the_log_says_why() {
    let fixture = Fixture::local();
    let served = Served::new(&fixture, &[OPERATOR, "migration://c/n/*"]);
    let good = served.authority.issue("operator", &[dns(OPERATOR)]);
    served.lists(&good).unwrap();

    let stranger = Authority::new(&fixture, "stranger");
    let foreign = Files { ca: served.authority.ca(), ..stranger.issue("operator", &[dns(OPERATOR)]) };
    let expired = served.authority.issue_until("late", &[dns(OPERATOR)], 2021);
    let unlisted = served.authority.issue("other", &[dns("other.example")]);
    let nameless = served.authority.issue("nameless", &[]);
    let two = served.authority.issue("two", &[uri("migration://c/n/a"), uri("migration://c/n/b")]);
    for (files, said) in [
        (&foreign, "UnknownIssuer"),
        (&expired, "xpired"),
        (&unlisted, "no --allow-client lets other.example in"),
        (&nameless, "no --allow-client lets  in"),
        (&two, "no --allow-client lets migration://c/n/a, migration://c/n/b in"),
    ] {
        let before = served.log().len();
        assert!(served.lists(files).is_err(), "{said}");
        let logged = || served.log()[before..].contains(said);
        assert!(process::wait_until(SOON, logged), "{said} is not in {}", &served.log()[before..]);
    }
    // Without any certificate, and without TLS.
    let before = served.log().len();
    runtime().block_on(async {
        let plain: AgentAddress = format!("http://{}", served.tcp()).parse().unwrap();
        if let Ok(mut agent) = client::connect(&plain, None).await {
            assert!(list(&mut agent).await.is_err());
        }
    });
    assert!(process::wait_until(SOON, || served.log()[before..].contains("refused")), "{}", served.log());
    let secret = fs::read_to_string(&good.key).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    assert!(!served.log().contains(secret) && !served.log().contains("PRIVATE KEY"));
    // Nobody who was refused keeps others out.
    served.lists(&good).unwrap();
}

#[test]
fn a_client_does_not_talk_to_an_agent_of_another_authority() {
    let fixture = Fixture::local();
    let served = Served::new(&fixture, &[OPERATOR]);
    let stranger = Authority::new(&fixture, "stranger");
    let files = Files { ca: stranger.ca(), ..served.authority.issue("operator", &[dns(OPERATOR)]) };
    served.lists(&files).unwrap_err();
}

#[test]
fn an_application_may_touch_itself_and_nothing_else() {
    let fixture = Fixture::local();
    let served = Served::new(&fixture, &[OPERATOR, "migration://c/n/*"]);
    let operator = served.authority.issue("operator", &[dns(OPERATOR)]);
    let own = served.authority.issue("own", &[uri("migration://c/n/own")]);
    let operator = served.through(&operator);
    let through = served.through(&own);
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let victim = Workload::start("heap", &["--mib", "8"]).unwrap();
    let (pid, other) = (workload.pid().to_string(), victim.pid().to_string());
    let dump = |app, pid, operation| ["checkpoint", "--app", app, "--pid", pid, "--operation", operation];

    // A process is not an application's because that says so.
    for (app, pid) in [("c/n/own", &pid), ("c/n/own", &other), ("c/n/other", &other)] {
        let refused = fixture.refused(&words(&dump(app, pid, "dump-0001"), &through));
        assert_eq!(refused["reason"], "forbidden", "{app} {pid}: {refused}");
    }
    let first = words(&dump("c/n/own", &pid, "pre-00001"), &operator);
    fixture.json(&[&first[..], &["--leave-running"]].concat());
    fixture.json(
        &[&words(&dump("c/n/other", &other, "pre-00002"), &operator)[..], &["--leave-running"]].concat(),
    );
    let again = words(&dump("c/n/own", &pid, "dump-0002"), &through);
    let dumped = fixture.json(&again);
    assert_eq!(dumped["left"], "killed");
    assert!(process::wait_gone(workload.pid(), LIMIT));
    collect_orphans();
    for (app, pid) in [("c/n/own", &other), ("c/n/other", &other)] {
        let refused = fixture.refused(&words(&dump(app, pid, "dump-0003"), &through));
        assert_eq!(refused["reason"], "forbidden", "{app} {pid}: {refused}");
    }
    // What is run as root is not for it to say.
    let hooked = words(&dump("c/n/own", &pid, "dump-0005"), &through);
    let refused = fixture.refused(&[&hooked[..], &["--before-freeze", "true"]].concat());
    assert_eq!(refused["reason"], "forbidden", "{refused}");
    // Nor what is read as root, and where it comes back.
    let listing = words(&dump("c/n/own", &pid, "dump-0006"), &through);
    let refused = fixture.refused(&[&listing[..], &["--path", "/etc/shadow"]].concat());
    assert_eq!(refused["reason"], "forbidden", "{refused}");
    let elsewhere = words(&["restore", "--app", "c/n/own", "--launcher", "/run/another"], &through);
    assert_eq!(fixture.refused(&elsewhere)["reason"], "forbidden");
    // Nor can it see, cancel or bring back what is not its own.
    let refused = fixture.refused(&words(&["restore", "--app", "c/n/other"], &through));
    assert_eq!(refused["reason"], "forbidden");
    let refused = fixture.refused(&words(&["cancel", "pre-00002"], &through));
    assert_eq!(refused["reason"], "unknown-operation");
    let seen = served.lists(&own).unwrap().operations;
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.iter().all(|operation| operation.app == "c/n/own"));
    let refused = fixture.refused(&words(&dump("c/n/own", &pid, "pre-00002"), &through));
    assert_eq!(refused["reason"], "operation-mismatch");
    for app in ["c/n/other", "c/n/own"] {
        let listed = served.stored(&own, app);
        assert_eq!(listed.is_ok(), app == "c/n/own", "{app}: {listed:?}");
    }

    let restored = fixture.json(&words(&["restore", "--app", "c/n/own"], &through));
    assert_eq!(restored["pid"], workload.pid());
    intact(&workload);
    intact(&victim);
    // What it has brought back is its own.
    fixture.json(&words(&dump("c/n/own", &pid, "dump-0004"), &through));
    assert!(process::wait_gone(workload.pid(), LIMIT));
}

#[test]
fn the_memory_of_a_stopped_process_is_given_to_its_own_application_and_operators_only() {
    let fixture = Fixture::local();
    let served = Served::new(&fixture, &[OPERATOR, "migration://c/n/*"]);
    let operator = served.authority.issue("operator", &[dns(OPERATOR)]);
    let own = served.authority.issue("own", &[uri("migration://c/n/own")]);
    let other = served.authority.issue("other", &[uri("migration://c/n/other")]);
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let address: AgentAddress = served.address().parse().unwrap();
    let (app, pid) = ("c/n/own".to_owned(), workload.pid() as u32);
    runtime().block_on(async {
        let request = FinalDumpRequest {
            operation_id: "handover-1".to_owned(),
            app: app.clone(),
            pid,
            strategy: Strategy::LazyDirect.into(),
            ..Default::default()
        };
        let mut agent = client::connect(&address, Some(&operator)).await.unwrap();
        let dumped = agent.final_dump(request).await.unwrap().into_inner();
        let Some(Outcome::Handover(stopped)) = dumped.outcome else { panic!("{dumped:?}") };
        assert_eq!(process::state(workload.pid()), Some('T'));
        let handover = stopped.handover;
        let described = fixture.path().join("store").join(&app).join("handovers").join(&handover);
        let manifest = Manifest::decode(&fs::read(described.join("manifest")).unwrap()).unwrap();
        let (pack, frame) = (manifest.frames[0].pack.to_string(), manifest.frames[0].stored_length.into());
        let handovers = async |files| {
            let channel = client::channel(&address, Some(files)).await.unwrap();
            HandoversClient::new(channel).max_decoding_message_size(1 << 20)
        };
        for (files, named) in [(&other, "c/n/own"), (&other, "c/n/other"), (&own, "c/n/other")] {
            let mut client = handovers(files).await;
            let (app, handover, pack) = (named.to_owned(), handover.clone(), pack.clone());
            let read = ReadFramesRequest {
                app: app.clone(),
                handover: handover.clone(),
                pack,
                offset: 0,
                length: frame,
            };
            let refused = [
                client.read_frames(read).await.map(drop).unwrap_err(),
                client
                    .finish_handover(FinishHandoverRequest { app: app.clone(), handover: handover.clone() })
                    .await
                    .map(drop)
                    .unwrap_err(),
                client
                    .take_back(TakeBackRequest { app, handover, target_has_ended: false })
                    .await
                    .map(drop)
                    .unwrap_err(),
            ];
            for status in refused {
                assert!(matches!(status.code(), Code::PermissionDenied | Code::NotFound), "{status}");
            }
            let listed = client.list_handovers(ListHandoversRequest::default()).await.unwrap().into_inner();
            assert_eq!(listed.handovers.len(), usize::from(std::ptr::eq(files, &own)));
        }
        let mut client = handovers(&own).await;
        let read = ReadFramesRequest {
            app: app.clone(),
            handover: handover.clone(),
            pack,
            offset: 0,
            length: frame,
        };
        let mut frames = client.read_frames(read).await.unwrap().into_inner();
        assert!(!frames.message().await.unwrap().unwrap().data.is_empty());
        // Nobody has taken it over, so it cannot be over.
        let finish = FinishHandoverRequest { app: app.clone(), handover: handover.clone() };
        let refused = client.finish_handover(finish).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        client.take_back(TakeBackRequest { app, handover, target_has_ended: false }).await.unwrap();
    });
    intact(&workload);
    assert!(!served.log().contains("PRIVATE KEY"));
}

#[test]
fn replaced_certificates_count_for_new_connections_and_old_ones_stay() {
    let fixture = Fixture::local();
    let served = Served::new(&fixture, &[OPERATOR]);
    let old = served.authority.issue("operator", &[dns(OPERATOR)]);
    let next = Authority::new(&fixture, "next");
    let new = next.issue("operator", &[dns(OPERATOR)]);
    let runtime = runtime();
    runtime.block_on(async {
        let address: AgentAddress = served.address().parse().unwrap();
        let mut before = client::connect(&address, Some(&old)).await.unwrap();
        list(&mut before).await.unwrap();
        served.list(&new).await.unwrap_err();

        // The server gets a certificate of the next authority, and trusts that one alone.
        let server = next.issue("server", &[dns("localhost")]);
        for (from, to) in [(&server.cert, "server.pem"), (&server.key, "server.key"), (&server.ca, "ca.pem")]
        {
            let to = served.authority.folder.join(to);
            let staged = to.with_extension("staged");
            fs::copy(from, &staged).unwrap();
            fs::rename(staged, to).unwrap();
        }
        served.list(&new).await.unwrap();
        let old = Files { ca: next.ca(), ..old.clone() };
        served.list(&old).await.unwrap_err();
        list(&mut before).await.unwrap();

        // Damaged files change nothing.
        fs::write(served.authority.folder.join("server.pem"), "nothing").unwrap();
        served.list(&new).await.unwrap();
        assert!(served.log().contains("cannot be used; those before are"), "{}", served.log());
    });
}

#[test]
fn plaintext_is_served_to_nobody_who_did_not_ask_for_it_by_name() {
    let fixture = Fixture::local();
    let state = fixture.path().join("state");
    let socket = fixture.path().join("agent.sock");
    let serve = |more: &[&'static str]| {
        let own = ["serve", "--state-dir", state.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
        own.iter().copied().chain(more.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let refused = serve(&["--listen", "127.0.0.1:0"]);
    let refused = fixture.refused(&refused.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(refused["reason"], "usage", "{refused}");
    assert!(!socket.exists());
    let service = Service::start(&fixture, &["--listen", "127.0.0.1:0", "--insecure-plaintext"]);
    let address = format!("http://{}", service.reached["tcp"].as_str().unwrap());
    fixture.json(&["status", "--agent", &address]);
}

#[test]
fn a_caller_who_says_nothing_keeps_nobody_out() {
    let fixture = Fixture::local();
    let served = Served::new(&fixture, &[OPERATOR]);
    let silent: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(served.tcp()).unwrap()).collect();
    let good = served.authority.issue("operator", &[dns(OPERATOR)]);
    runtime().block_on(async {
        tokio::time::timeout(Duration::from_secs(8), served.list(&good)).await.unwrap().unwrap();
    });
    drop(silent);
}
