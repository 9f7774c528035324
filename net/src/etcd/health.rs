//! The standard gRPC health service, and the health page.

use super::Api;
use super::pb::health as pb;
use pb::health_check_response::ServingStatus;
use pb::health_server::Health;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The services that can be asked about; all are up or down together.
const SERVICES: [&str; 9] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
];

fn response(status: ServingStatus) -> pb::HealthCheckResponse {
    pb::HealthCheckResponse { status: status.into() }
}

impl Api {
    fn serving(&self) -> ServingStatus {
        if self.has_leader() { ServingStatus::Serving } else { ServingStatus::NotServing }
    }

    async fn watch_health(self, known: bool, answers: mpsc::Sender<Result<pb::HealthCheckResponse, Status>>) {
        let mut status = self.0.status.clone();
        let mut last = None;
        loop {
            status.borrow_and_update();
            let now = if known { self.serving() } else { ServingStatus::ServiceUnknown };
            if last != Some(now) && answers.send(Ok(response(now))).await.is_err() {
                return;
            }
            last = Some(now);
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                () = answers.closed() => return,
            }
        }
    }
}

#[tonic::async_trait]
impl Health for Api {
    async fn check(&self, request: Request<pb::HealthCheckRequest>) -> Result<Response<pb::HealthCheckResponse>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(response(self.serving())))
    }

    type WatchStream = ReceiverStream<Result<pb::HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<pb::HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.get_ref().service.as_str());
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(self.clone().watch_health(known, answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
