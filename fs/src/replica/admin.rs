//! What an operator asks.

use super::types::{AdminRequest, GroupInfo, HealInfo, PeerMsg, ReplicaOutput};
use super::{Disk, ReplicaCore, Role};
use super::join::Stage;

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn on_admin(&mut self, id: u64, request: AdminRequest) {
        match request {
            AdminRequest::Info => {}
            AdminRequest::Scrub => self.begin_scrub(None),
            AdminRequest::Heal => {
                for brick in self.group.members.clone() {
                    if brick != self.brick {
                        self.send(brick, PeerMsg::Config(self.group.clone()));
                    }
                }
            }
            AdminRequest::HealFull => {
                // Of bricks out of sync: the next heal compares everything. Of those in sync: a scrub does.
                self.heal_full = self.group.members.len() > self.group.in_sync.len();
                self.begin_scrub(None);
            }
        }
        let info = self.info();
        self.out.push_back(ReplicaOutput::Admin { id, info });
    }

    /// How things stand.
    #[must_use]
    pub fn info(&self) -> GroupInfo {
        let role = match self.role {
            _ if self.wiped => "wiped",
            Role::Outsider => "outsider",
            Role::Secondary => "secondary",
            Role::Primary if self.p.serving => "primary",
            Role::Primary => "taking over",
        };
        GroupInfo {
            brick: self.brick,
            role: role.to_owned(),
            config: self.group.clone(),
            in_flight: self.p.flights.len() as u64,
            dirty_buckets: self.store.dirty().len() as u64,
            heals: self.heal_infos(),
            damage: self.damage.iter().cloned().collect(),
        }
    }

    fn heal_infos(&self) -> Vec<HealInfo> {
        let mut infos = Vec::new();
        if self.role != Role::Primary {
            return infos;
        }
        infos.extend(self.p.scrub.as_ref().map(|s| s.info(self.now)));
        for &brick in self.group.members.iter().filter(|b| !self.group.in_sync.contains(b)) {
            let mut info = HealInfo { brick, state: "waiting".to_owned(), ..HealInfo::default() };
            if let Some(j) = self.p.join.as_ref().filter(|j| j.brick == brick) {
                let progress = j.progress(self.now);
                let state = match j.stage {
                    Stage::Bulk => "bulk",
                    Stage::CatchUp => "catching up",
                    Stage::Draining | Stage::Last => "frozen",
                    Stage::Syncing | Stage::Proposing | Stage::Lost => "joining",
                };
                info.state = state.to_owned();
                (info.buckets_done, info.buckets_left) = (progress.units_done, progress.units_left);
                info.objects = j.done.0 + progress.objects_healed;
                info.bytes = j.done.1 + progress.bytes_sent;
                info.elapsed_us = u64::try_from(self.now.since(j.began).as_micros()).unwrap_or(u64::MAX);
            }
            infos.push(info);
        }
        infos
    }
}
