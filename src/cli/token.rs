//! `tsim token`: what a browser, or a client of another machine, shows the scheduler.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Context, Exit, Failure, Run, ask::ServerArgs};
use crate::sched::web::auth::AccessToken as TokenText;

/// Prints the token that lets the viewer and other machines change things; for administrators
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tsim token
  tsim token > token && tsim queue --server http://localhost:8686 --token-file token

The first start of tsimd makes it, in scheduler.token_file. Who has it may do everything that the
scheduler does; a new one is made when the file is removed and tsimd started anew.")]
pub(super) struct TokenArgs {
    #[command(flatten)]
    pub(super) at: ServerArgs,
}

#[derive(Serialize, Deserialize)]
struct Shown {
    token: String,
}

impl Run for TokenArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let shown = match &context.client {
            Some(client) => client.get("/token")?,
            None => {
                let file = &context.config.token_file;
                if !file.try_exists().unwrap_or(true) {
                    let text = "there is no token yet: the first start of tsimd makes it";
                    return Err(Failure::cannot_run(text));
                }
                let token = TokenText::read(file).map_err(Failure::cannot_run)?;
                let token = token.text();
                Shown { token }
            }
        };
        context.print(&shown, |out| writeln!(out, "{}", shown.token))?;
        Ok(Exit::Ok)
    }
}
