//! The binary called as `etcd`: its command line, its defaults, its sockets, its certificates.

use crate::support::dev::enter;
use crate::support::{BRICKRAFT, Daemon, Netns, output, run, text};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A place of its own, with the binary linked as `etcd`.
struct Host {
    netns: Netns,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { netns: Netns::new(), dir: tempfile::tempdir().expect("temporary directory") };
        std::os::unix::fs::symlink(BRICKRAFT, host.path("etcd")).expect("link");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn etcd(&self, args: &[&str]) -> Command {
        let mut c = enter(&self.netns, [self.path("etcd").as_os_str()]);
        c.args(args).current_dir(self.dir.path());
        c
    }

    fn start(&self, args: &[&str]) -> Daemon {
        let mut daemon = Daemon::spawn(self.etcd(args), &self.path(&format!("log{}", args.len())));
        daemon.wait_line("ready to serve client requests", Duration::from_secs(60));
        daemon
    }

    fn etcdctl(&self, args: &[&str]) -> Command {
        let mut c = enter(&self.netns, ["etcdctl", "--command-timeout=10s"]);
        c.env("ETCDCTL_API", "3").args(args).current_dir(self.dir.path());
        c
    }

    fn curl(&self, args: &[&str]) -> String {
        run(enter(&self.netns, ["curl", "-sS", "--max-time", "10"]).args(args).current_dir(self.dir.path()))
    }
}

#[test]
fn defaults_flags_and_refusals_are_etcds() {
    let host = Host::new();
    let version = run(&mut host.etcd(&["--version"]));
    assert!(version.starts_with("etcd Version: 3.5.21\nGit SHA: ") && version.contains("\nGo OS/Arch: linux/"), "{version}");
    assert!(run(&mut host.etcd(&["-h"])).contains("--listen-client-urls 'http://localhost:2379'"));
    for (args, code, said) in [
        (&["--no-such-flag"][..], 2, "flag provided but not defined: -no-such-flag"),
        (&["stray"], 1, "'stray' is not a valid flag"),
        (&["--heartbeat-interval=x"], 2, "invalid value \"x\" for flag -heartbeat-interval: parse error"),
        (&["--enable-v2"], 1, "--enable-v2=true is not supported yet"),
        (&["--listen-client-urls=https://127.0.0.1:1"], 1, "must be provided for https://127.0.0.1:1 with HTTPS scheme"),
    ] {
        let ended = output(&mut host.etcd(args));
        let words = text(&ended.stderr);
        assert!(ended.status.code() == Some(code) && words.contains(said), "{args:?}: {:?} {words}", ended.status);
    }
    let mut daemon = host.start(&[]);
    assert!(host.path("default.etcd/member").is_dir(), "the data directory is not where etcd's would be");
    assert_eq!(run(&mut host.etcdctl(&["put", "a", "1"])), "OK\n");
    let members = run(&mut host.etcdctl(&["member", "list"]));
    assert!(members.contains(", started, default, http://localhost:2380, http://localhost:2379, false"), "{members}");
    assert!(daemon.stop(Duration::from_secs(10)), "{}", daemon.log());
    // Again on the same data, with settings from the environment; what means nothing is said and no more.
    let mut c = host.etcd(&["-snapshot-count", "5000"]);
    c.env("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:12379,unix://sock").env("ETCD_LISTEN_METRICS_URLS", "http://127.0.0.1:12381");
    let mut daemon = Daemon::spawn(c, &host.path("log"));
    daemon.wait_line("ready to serve client requests", Duration::from_secs(60));
    assert!(daemon.log().contains("--snapshot-count has no effect"), "{}", daemon.log());
    assert_eq!(run(&mut host.etcdctl(&["--endpoints=127.0.0.1:12379", "get", "a"])), "a\n1\n");
    assert_eq!(run(&mut host.etcdctl(&["--endpoints=unix://sock", "get", "a"])), "a\n1\n");
    assert!(host.curl(&["http://127.0.0.1:12381/metrics"]).contains("\netcd_server_has_leader 1\n"));
    assert!(host.curl(&["http://127.0.0.1:12381/metrics"]).contains("\nprocess_resident_memory_bytes "));
    assert_eq!(host.curl(&["http://127.0.0.1:12381/readyz"]), "ok\n");
    assert!(host.curl(&["--unix-socket", "sock", "http://x/version"]).contains("3.5.21"));
    // No store on the port for metrics.
    assert!(host.curl(&["-d", "{}", "http://127.0.0.1:12381/v3/kv/range"]).contains("404"));
    let got = host.curl(&["-d", "{\"key\":\"YQ==\"}", "http://127.0.0.1:12379/v3/kv/range"]);
    assert!(got.contains("\"value\":\"MQ==\""), "{got}");
    assert!(daemon.stop(Duration::from_secs(10)));
    // A socket that is left behind is no obstacle, and the file says everything.
    std::fs::write(host.path("etcd.yml"), "listen-client-urls: unix://sock\nlog-level: error\nenable-grpc-gateway: false\n")
        .expect("write");
    let mut daemon = host.start(&["--name=ignored", "--config-file", "etcd.yml"]);
    assert_eq!(run(&mut host.etcdctl(&["--endpoints=unix://sock", "get", "a"])), "a\n1\n");
    assert!(host.curl(&["--unix-socket", "sock", "-d", "{}", "http://x/v3/kv/range"]).contains("404"));
    assert!(daemon.stop(Duration::from_secs(10)));
    assert!(!host.path("sock").exists(), "the socket is still there");
    // Nobody asks a member how its cluster began.
    for flags in [
        &["--initial-cluster-state=existing"][..],
        &["--initial-cluster-state=existing", "--initial-cluster=default=http://localhost:2380"],
        &["--name=zz", "--data-dir=default.etcd", "--initial-cluster=foo=http://127.0.0.1:77"],
        &["--initial-cluster=bogus"],
    ] {
        let mut daemon = host.start(flags);
        assert_eq!(run(&mut host.etcdctl(&["get", "a"])), "a\n1\n", "{flags:?}");
        assert!(daemon.stop(Duration::from_secs(10)), "{flags:?}");
    }
}

/// An authority, certificates that it signs, and the next one's number.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>, AtomicU64);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().expect("a key")).expect("sign");
        Self(issuer, AtomicU64::new(1))
    }

    fn save(&self, path: &Path) {
        std::fs::write(path, self.0.pem()).expect("write");
    }

    /// Writes `NAME.crt` and `NAME.key`; the certificate's number.
    fn sign(&self, dir: &Path, name: &str) -> rcgen::SerialNumber {
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let serial = rcgen::SerialNumber::from(self.1.fetch_add(1, Ordering::Relaxed));
        params.serial_number = Some(serial.clone());
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("sign");
        std::fs::write(dir.join(format!("{name}.crt")), certificate.pem()).expect("write");
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("write");
        serial
    }
}

#[test]
fn tls_lets_in_whom_it_should() {
    let host = Host::new();
    let ours = Authority::new("ours");
    ours.save(&host.path("ca.crt"));
    for name in ["server", "alice"] {
        ours.sign(host.dir.path(), name);
    }
    let theirs = Authority::new("theirs");
    theirs.save(&host.path("other-ca.crt"));
    theirs.sign(host.dir.path(), "mallory");
    let mut daemon = host.start(&[
        "--listen-client-urls=https://127.0.0.1:2379,unixs://sock",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--listen-metrics-urls=http://127.0.0.1:2381",
        "--cert-file=server.crt",
        "--key-file=server.key",
        "--trusted-ca-file=ca.crt",
        "--client-cert-auth",
        "--tls-min-version=TLS1.2",
        "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    ]);
    let with = |ca: &str, who: &str, words: &[&str]| {
        let mut c = host.etcdctl(&["--endpoints=https://127.0.0.1:2379", "--dial-timeout=2s", "--command-timeout=3s"]);
        c.args([format!("--cacert={ca}"), format!("--cert={who}.crt"), format!("--key={who}.key")]).args(words);
        c
    };
    assert_eq!(run(&mut with("ca.crt", "alice", &["put", "a", "1"])), "OK\n");
    assert!(!output(&mut with("other-ca.crt", "alice", &["get", "a"])).status.success(), "the server's certificate was not checked");
    assert!(!output(&mut with("ca.crt", "mallory", &["get", "a"])).status.success(), "a stranger's certificate was taken");
    let nobody = output(&mut host.etcdctl(&[
        "--endpoints=https://127.0.0.1:2379",
        "--dial-timeout=2s",
        "--command-timeout=3s",
        "--cacert=ca.crt",
        "get",
        "a",
    ]));
    assert!(!nobody.status.success(), "no certificate was asked for");
    // Who speaks no TLS is cut off, and those who stay silent hold up nobody.
    let plain = output(enter(&host.netns, ["curl", "-sS", "--max-time", "5"]).args(["http://127.0.0.1:2379/health"]));
    assert!(matches!(plain.status.code(), Some(code) if code != 0 && code != 28), "{:?}", plain.status);
    let mut silent: Vec<_> =
        (0..20).map(|_| enter(&host.netns, ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/2379; sleep 30"]).spawn().expect("start")).collect();
    assert_eq!(run(&mut with("ca.crt", "alice", &["get", "a"])), "a\n1\n");
    for child in &mut silent {
        let _ = child.kill();
        let _ = child.wait();
    }
    for args in [
        &["https://127.0.0.1:2379/version"][..],
        &["--tlsv1.3", "https://127.0.0.1:2379/version"],
        &["--unix-socket", "sock", "https://localhost/version"],
    ] {
        let tls = ["--cacert", "ca.crt", "--cert", "alice.crt", "--key", "alice.key"];
        assert!(host.curl(&[&tls[..], args].concat()).contains("3.5.21"), "{args:?}");
    }
    assert!(host.curl(&["http://127.0.0.1:2381/health"]).contains("\"true\""));
    assert!(daemon.stop(Duration::from_secs(10)), "{}", daemon.log());
}

/// `brickraft WORDS...` on that host.
fn brickraft(host: &Host, words: &[&str]) -> Command {
    let mut c = enter(&host.netns, [BRICKRAFT]);
    c.args(words).current_dir(host.dir.path());
    c
}

#[track_caller]
fn refused(command: &mut Command, with: &str) {
    let ended = output(command);
    let said = text(&ended.stderr);
    assert!(!ended.status.success() && said.contains(with) && !said.contains("panicked"), "{command:?}: {said}");
}

#[test]
fn our_own_commands_speak_tls_as_etcdctl_does() {
    let host = Host::new();
    let ours = Authority::new("ours");
    ours.save(&host.path("ca.crt"));
    Authority::new("theirs").save(&host.path("other-ca.crt"));
    for name in ["server", "alice"] {
        ours.sign(host.dir.path(), name);
    }
    let _daemon = host.start(&[
        "--listen-client-urls=https://127.0.0.1:2379,unixs://sock",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--cert-file=server.crt",
        "--key-file=server.key",
        "--trusted-ca-file=ca.crt",
    ]);
    let identity = ["--cert", "alice.crt", "--key", "alice.key"];
    let list = |words: &[&str]| brickraft(&host, &[&["member", "list"], words].concat());
    // The scheme asks for TLS; so do the flags where there is no scheme; a socket's host is localhost.
    for endpoint in ["https://127.0.0.1:2379", "127.0.0.1:2379", "unixs://sock"] {
        let said = run(&mut list(&[&identity[..], &["--cacert=ca.crt", "--endpoints", endpoint]].concat()));
        assert!(said.contains(", started, default, http://localhost:2380, https://127.0.0.1:2379, false"), "{endpoint}: {said}");
    }
    run(&mut list(&[&identity[..], &["--endpoints=https://127.0.0.1:2379", "--insecure-skip-tls-verify"]].concat()));
    // The system's authorities do not know the server, nor do others.
    let https = ["--endpoints=https://127.0.0.1:2379"];
    refused(&mut list(&[&identity[..], &https].concat()), "https://127.0.0.1:2379: cannot be reached: invalid peer certificate");
    refused(&mut list(&[&identity[..], &https, &["--cacert=other-ca.crt"]].concat()), "invalid peer certificate");
    refused(&mut list(&["--cacert=ca.crt", https[0]]), "CertificateRequired");
    refused(&mut list(&["--cert=alice.crt", https[0]]), "KeyFile and CertFile must both be present[key: , cert: alice.crt]");
    refused(&mut list(&["--cacert=none.crt", https[0]]), "--cacert: read none.crt");
    refused(&mut list(&["--dial-timeout=x"]), "--dial-timeout=x: a duration such as 5s is wanted");
    // From the environment, where what is empty counts as not there.
    let with_variables = |words: &[&str]| {
        let mut c = brickraft(&host, words);
        c.env("ETCDCTL_ENDPOINTS", "https://127.0.0.1:2379").env("ETCDCTL_CACERT", "ca.crt").env("ETCDCTL_CERT", "alice.crt");
        c.env("ETCDCTL_KEY", "alice.key").env("ETCDCTL_USER", "").env("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "");
        c
    };
    assert_eq!(run(&mut with_variables(&["snapshot", "save", "saved.db"])), "Snapshot saved at saved.db\n");
    assert!(run(&mut brickraft(&host, &["snapshot", "status", "saved.db"])).contains(", 0, "));
    // No token is asked for where users are not in use: etcd says so.
    refused(with_variables(&["member", "list"]).env("ETCDCTL_USER", "root:pw"), "authentication is not enabled");
    refused(with_variables(&["member", "list", "--user", "root", "--password", "pw"]).env("ETCDCTL_USER", ""), "is not enabled");
}

#[test]
fn a_revoked_certificate_is_refused() {
    let host = Host::new();
    let ours = Authority::new("ours");
    ours.save(&host.path("ca.crt"));
    for name in ["server", "alice"] {
        ours.sign(host.dir.path(), name);
    }
    let serial = ours.sign(host.dir.path(), "fired");
    let day = std::time::Duration::from_secs(24 * 3600);
    let now = std::time::SystemTime::now();
    let list = rcgen::CertificateRevocationListParams {
        this_update: (now - day).into(),
        next_update: (now + day).into(),
        crl_number: rcgen::SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: serial,
            revocation_time: (now - day).into(),
            reason_code: Some(rcgen::RevocationReason::PrivilegeWithdrawn),
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&ours.0).expect("sign");
    std::fs::write(host.path("crl.pem"), list.pem().expect("PEM")).expect("write");
    std::fs::write(host.path("crl.der"), list.der()).expect("write");
    let get = |who: &str| {
        let mut c = host.etcdctl(&["--endpoints=https://127.0.0.1:2379", "--dial-timeout=2s", "--command-timeout=3s", "--cacert=ca.crt"]);
        c.args([format!("--cert={who}.crt"), format!("--key={who}.key")]).args(["put", "a", who]);
        c
    };
    let flags = [
        "--listen-client-urls=https://127.0.0.1:2379",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--cert-file=server.crt",
        "--key-file=server.key",
        "--trusted-ca-file=ca.crt",
        "--client-cert-auth",
    ];
    // The list makes the difference, in both of its forms.
    for revoked in [None, Some("--client-crl-file=crl.pem"), Some("--client-crl-file=crl.der")] {
        let mut daemon = host.start(&[&flags[..], revoked.as_slice()].concat());
        assert_eq!(run(&mut get("alice")), "OK\n", "{revoked:?}");
        let fired = output(&mut get("fired"));
        assert_eq!(fired.status.success(), revoked.is_none(), "{revoked:?}: {}", text(&fired.stderr));
        if revoked.is_some() {
            let own = ["member", "list", "--endpoints=https://127.0.0.1:2379", "--cacert=ca.crt", "--cert=fired.crt", "--key=fired.key"];
            refused(&mut brickraft(&host, &own), "CertificateRevoked");
        }
        assert!(daemon.stop(Duration::from_secs(10)), "{}", daemon.log());
    }
    std::fs::write(host.path("crl.pem"), "nonsense").expect("write");
    refused(&mut host.etcd(&[&flags[..], &["--client-crl-file=crl.pem"]].concat()), "TLS for clients");
}

/// Three members that speak TLS to each other and to clients.
fn three(host: &Host, more: &[&str]) -> Vec<Daemon> {
    let cluster: Vec<String> = (0..3).map(|i| format!("m{i}=https://127.0.0.{}:2380", i + 1)).collect();
    let mut daemons: Vec<Daemon> = (0..3)
        .map(|i| {
            let at = format!("https://127.0.0.{}", i + 1);
            let args = [
                format!("--name=m{i}"),
                format!("--listen-client-urls={at}:2379"),
                format!("--listen-peer-urls={at}:2380"),
                format!("--initial-advertise-peer-urls={at}:2380"),
                format!("--initial-cluster={}", cluster.join(",")),
            ];
            let mut c = host.etcd(&args.iter().map(String::as_str).collect::<Vec<_>>());
            c.args(more);
            Daemon::spawn(c, &host.path(&format!("log{i}")))
        })
        .collect();
    for daemon in &mut daemons {
        daemon.wait_line("ready to serve client requests", Duration::from_secs(60));
    }
    daemons
}

#[test]
fn members_speak_tls_to_each_other() {
    let host = Host::new();
    let _members = three(&host, &["--auto-tls", "--peer-auto-tls"]);
    assert!(host.path("m0.etcd/fixtures/peer/cert.pem").exists() && host.path("m0.etcd/fixtures/client/key.pem").exists());
    let skip = ["--endpoints=https://127.0.0.2:2379", "--insecure-skip-tls-verify", "--insecure-transport=false"];
    assert_eq!(run(&mut host.etcdctl(&[&skip[..], &["put", "a", "1"]].concat())), "OK\n");
    // Who speaks no TLS on a port for peers is cut off.
    let plain = output(enter(&host.netns, ["curl", "-sS", "--max-time", "5"]).args(["http://127.0.0.1:2380/version"]));
    assert!(matches!(plain.status.code(), Some(code) if code != 0 && code != 28), "{:?}", plain.status);
}

#[test]
fn members_check_each_others_certificates() {
    let host = Host::new();
    let ours = Authority::new("ours");
    ours.save(&host.path("ca.crt"));
    let mut params = rcgen::CertificateParams::new(["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(String::from)).expect("parameters");
    params.distinguished_name.push(rcgen::DnType::CommonName, "member");
    let key = rcgen::KeyPair::generate().expect("a key");
    std::fs::write(host.path("member.crt"), params.signed_by(&key, &ours.0).expect("sign").pem()).expect("write");
    std::fs::write(host.path("member.key"), key.serialize_pem()).expect("write");
    let files = ["--cert-file=member.crt", "--key-file=member.key", "--peer-cert-file=member.crt", "--peer-key-file=member.key"];
    let _members = three(&host, &[&files[..], &["--peer-trusted-ca-file=ca.crt", "--peer-client-cert-auth"]].concat());
    let endpoint = ["--endpoints=https://127.0.0.3:2379", "--cacert=ca.crt"];
    assert_eq!(run(&mut host.etcdctl(&[&endpoint[..], &["put", "a", "1"]].concat())), "OK\n");
    // Nobody without a certificate of ours gets as far as a greeting.
    let stranger = output(enter(&host.netns, ["curl", "-sSk", "--max-time", "5"]).args(["https://127.0.0.1:2380/version"]));
    assert!(!stranger.status.success());
}
