//! A redis with data of which every byte is compared.

use std::time::Duration;

use migration_harness::redis::{Client, key, value};

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
        now => {
            let found = differences(app).unwrap_or_else(|error| format!("it cannot be read: {error}"));
            Err(format!("{}: its data is {now} and was {digest}: {found}", app.name).into())
        }
    }
}

/// What differs, key by key.
fn differences(app: &Application) -> Result<String, Failure> {
    let mut client = client(app)?;
    let keys = client.keys()?;
    let mut wrong = Vec::new();
    for number in 0..keys {
        if client.get(key(number).as_bytes())?.as_deref() != Some(&value(number)) {
            wrong.push(key(number));
        }
    }
    Ok(format!("of {keys} keys, {} are not as they were stored {:?}", wrong.len(), wrong.first()))
}
