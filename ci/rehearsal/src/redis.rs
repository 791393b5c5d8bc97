//! A redis with data of which every byte is compared.

use std::time::Duration;

use migration_harness::redis::Client;

use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::until,
};

/// How long one command may take; pages may have to come from the store for it.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to where it is now; also to whatever else talks like redis.
pub fn client(app: &Application) -> Result<Client, Failure> {
    until(PATIENCE, &format!("{} answers", app.name), || {
        Ok(Some(Client::connect_to(app.address()?, ANSWER)?))
    })
}

/// Fills it, and returns a digest of all its data.
pub fn fill(app: &Application, mib: u64) -> Result<String, Failure> {
    let mut client = client(app)?;
    client.load(0, mib << 20)?;
    Ok(client.digest()?)
}

/// Compares all of its data with what it was.
pub fn compare(app: &Application, digest: &str) -> Result<(), Failure> {
    match client(app)?.digest()? {
        now if now == digest => Ok(()),
        now => Err(format!("{}: its data is {now} and was {digest}", app.name).into()),
    }
}
