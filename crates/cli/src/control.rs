//! `berth stop`, `berth rm`.

use berth_cri::berth::v1::{GetPodRequest, PodRef, RemovePodRequest, StopPodRequest};
use futures::future::join_all;

use crate::args::{Rm, Stop};
use crate::client::Client;
use crate::error::Error;

/// All at once; the first error is the command's, the others are told as well.
pub(crate) async fn stop(client: Client, args: Stop) -> Result<u8, Error> {
    let stops = args.pods.references().map(async |pod| {
        let request = StopPodRequest { pod: Some(pod.clone()), grace_seconds: args.grace };
        client.pods().stop(request).await.map_err(client.failed())?;
        println!("{}/{} is stopped", pod.namespace, pod.name);
        Ok(())
    });
    all(join_all(stops).await)
}

pub(crate) async fn rm(client: Client, args: Rm) -> Result<u8, Error> {
    let removals = args.pods.references().map(async |pod| {
        remove(&client, &pod, args.force).await?;
        println!("{}/{} is removed", pod.namespace, pod.name);
        Ok(())
    });
    all(join_all(removals).await)
}

/// A name that was mistyped is to be told, though to the service a pod that is not there is as wanted.
async fn remove(client: &Client, pod: &PodRef, stop: bool) -> Result<(), Error> {
    let request = GetPodRequest { pod: Some(pod.clone()) };
    client.pods().get(request).await.map_err(client.failed())?;
    let request = RemovePodRequest { pod: Some(pod.clone()), stop };
    match client.pods().remove(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::FailedPrecondition => Err(Error::Failed(format!(
            "{}: stop it first (berth stop {}), or use --force",
            status.message(),
            pod.name
        ))),
        Err(status) => Err(client.failed()(status)),
    }
}

fn all(results: Vec<Result<(), Error>>) -> Result<u8, Error> {
    let mut errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    let first = if errors.is_empty() { None } else { Some(errors.remove(0)) };
    for error in errors {
        eprintln!("berth: {error}");
    }
    first.map_or(Ok(0), Err)
}
