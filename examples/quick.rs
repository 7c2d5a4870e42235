//! Asks which services get from one address to another.
//!
//! ```sh
//! cargo run --example quick -- CONFIG corp10 10.1.1.100 10.2.1.200 22,443/tcp,53/udp
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, path::Path};

use tsim::{
    config::{Config, Places},
    model::{Protocol, ServiceLimits, parse_services},
    run::quick::Quick,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [config, lab, source, destination, services] = args.as_slice() else {
        return Err("usage: quick CONFIG LAB SOURCE DESTINATION SERVICES".into());
    };
    let config = Config::load(Some(Path::new(config)), &Places::system())?;
    let services = parse_services(services, Protocol::Tcp, ServiceLimits::default())?;
    let report = Quick::new(
        lab.parse()?,
        source.parse()?,
        destination.parse()?,
        services,
    )
    .on_progress(|percent, phase| eprintln!("{percent:3} % {phase}"))
    .run(&config)?;
    for service in &report.end_to_end {
        let reason = service.reason.as_deref().unwrap_or_default();
        println!("{} {} {reason}", service.service(), service.result);
    }
    Ok(())
}
