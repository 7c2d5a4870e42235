//! Proves with a real connection whether a service gets to another address and back.
//!
//! ```sh
//! cargo run --example detailed -- CONFIG corp10 10.1.1.100 10.2.1.200 443
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, path::Path};

use tsim::{
    config::{Config, Places},
    model::{Protocol, ServiceLimits, parse_services},
    run::detailed::Detailed,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [config, lab, source, destination, services] = args.as_slice() else {
        return Err("usage: detailed CONFIG LAB SOURCE DESTINATION SERVICES".into());
    };
    let config = Config::load(Some(Path::new(config)), &Places::system())?;
    let services = parse_services(services, Protocol::Tcp, ServiceLimits::default())?;
    let report = Detailed::new(
        lab.parse()?,
        source.parse()?,
        destination.parse()?,
        services,
    )
    .run(&config)?;
    println!("{}", report.overall());
    Ok(())
}
