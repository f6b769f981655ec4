//! Whole regions through TLS, against the same without it.

use pagewire::store::{ClientTls, Identity, RemoteOptions};
use pagewire_study::bench::{Failure, Row, Target};
use pagewire_study::server::ServerProcess;
use pagewire_study::usage;

use crate::pull::pull_with;
use crate::setup::Setup;

const NAMES: [&str; 2] = ["tls-pull-4", "tls-cpu-4"];

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    if !setup.wants(&NAMES) {
        return Ok(Vec::new());
    }
    let [mut time, mut cpu] = [(NAMES[0], "GB/s"), (NAMES[1], "s/GB")]
        .map(|(name, unit)| Row::new(name, unit, "without TLS", Target::None));
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let identity = Identity { certificate: path("server.pem"), key: path("server.key") };
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    std::fs::write(&identity.certificate, made.cert.pem())?;
    std::fs::write(&identity.key, made.signing_key.serialize_pem())?;
    let trusting = ClientTls { authorities: Some(identity.certificate.clone()), identity: None };
    let remote = RemoteOptions { connections: 4, tls: trusting, ..RemoteOptions::default() };

    let mut with = ServerProcess::start_with_tls(setup.path(), &identity)?;
    let mut without = ServerProcess::start(setup.path(), std::net::Ipv4Addr::LOCALHOST, None)?;
    setup.check(&pull_with(&with.region()?, &remote)?.mapping)?;
    for _ in 0..setup.options.rounds {
        let mut measured = Vec::new();
        for server in [&mut with, &mut without] {
            let (client_before, server_before) = (usage::own_cpu()?, server.cpu()?);
            let elapsed = pull_with(&server.region()?, &remote)?.elapsed;
            let used = usage::own_cpu()? - client_before + (server.cpu()? - server_before);
            measured.push((elapsed.as_secs_f64(), used.as_secs_f64()));
        }
        let gigabytes = setup.size() as f64 / 1e9;
        time.push(gigabytes / measured[0].0, gigabytes / measured[1].0);
        cpu.push(measured[0].1 / gigabytes, measured[1].1 / gigabytes);
    }
    Ok(vec![time, cpu])
}
