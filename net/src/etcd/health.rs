//! The standard gRPC health service, and the health page.

use super::Api;
use super::answers::{Answers, Outlet};
use super::pb::health as pb;
use pb::health_check_response::ServingStatus;
use pb::health_server::Health;
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

    async fn watch_health(self, known: bool, answers: Outlet<Result<pb::HealthCheckResponse, Status>>) {
        let mut status = self.0.status.clone();
        let mut last = None;
        loop {
            status.borrow_and_update();
            let now = if known { self.serving() } else { ServingStatus::ServiceUnknown };
            if last.replace(now) != Some(now) {
                answers.send(Ok(response(now))).await;
            }
            if status.changed().await.is_err() {
                return;
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

    type WatchStream = Answers<Result<pb::HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<pb::HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.get_ref().service.as_str());
        let api = self.clone();
        Ok(Response::new(Answers::of(|answers| api.watch_health(known, answers))))
    }
}
