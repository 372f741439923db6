//! The three resources of group `egress.mapper.com`: fields, what admission refuses, columns.
//!
//! Reading is lenient (a missing text is an empty one): one odd object that was stored before these
//! rules must not hide all others. What admission cannot see is judged by the controller.

#![expect(unreachable_pub, reason = "the derive of a schema copies its struct into a function")]
#![expect(clippy::doc_markdown, reason = "kubectl shows the descriptions of fields as they are")]
#![expect(clippy::duplicated_attributes, reason = "printer columns have the same attributes")]

pub mod conditions;
pub mod egress;
pub mod egress_mapper;
mod rules;
pub mod selector;
pub mod vip;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use self::egress::{Egress, EgressSpec, EgressStatus, Kind, WhenUnavailable};
pub use self::egress_mapper::{EgressMapper, EgressMapperSpec, EgressMapperStatus};
pub use self::selector::LabelSelector;
pub use self::vip::{BlocksStatus, PathTaken, Vip, VipSpec, VipStatus};

/// The API group of all three.
pub const GROUP: &str = "egress.mapper.com";

/// The definitions to install, each with the name of its file in `deploy/crds/`.
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("egress_v1alpha1_vip_crd.yaml", Vip::crd()),
        ("egress_v1alpha1_egress_crd.yaml", Egress::crd()),
        ("egress_v1alpha1_egressmapper_crd.yaml", EgressMapper::crd()),
    ]
}
