//! Makes a lab from a directory of facts, and says what it lacks.
//!
//! ```sh
//! cargo run --example up -- CONFIG corp10 netns-fixtures/corp10
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error, path::Path};

use tsim::{
    config::{Config, Places},
    lab::{self, UpOptions},
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [config, name, facts] = args.as_slice() else {
        return Err("usage: up CONFIG LAB FACTS".into());
    };
    let config = Config::load(Some(Path::new(config)), &Places::system())?;
    let up = lab::up_from(
        &config,
        &name.parse()?,
        Path::new(facts),
        UpOptions::default(),
        &(),
    )?;
    let what = if up.changed {
        "made"
    } else {
        "was there already"
    };
    println!("{name} {what}");
    Ok(())
}
