//! What each Egress asks for, and what of it is granted.

use std::sync::Arc;

use shared::Vip;
use shared::crd::egress::UnknownKind;
use shared::crd::{self, Kind, LabelSelector, WhenUnavailable};

use super::age::{Age, age, key};
use super::vips::{Accepted, Refused, Vips};
use super::wording::listed;
use crate::model::{EgressReason, Finding, ObjectKey};

/// An Egress that has an effect on pods.
pub(super) struct Claim<'a> {
    pub(super) egress: &'a crd::Egress,
    pub(super) target: Target<'a>,
    /// What happens to the pods' traffic.
    pub(super) effect: Effect,
    /// Why that is not the VIP.
    pub(super) trouble: Option<Finding<EgressReason>>,
    /// The address that is asked for; without one the claim is about both families.
    vip: Option<Vip>,
}

/// What happens to the external traffic of the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It leaves with the VIP.
    Map(Vip),
    /// It is dropped.
    Hold,
    /// It leaves with the node's address.
    Release,
}

/// Whose pods are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    pub(super) what: What<'a>,
}

/// Which pods of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What<'a> {
    /// A pod by its name.
    Pod(&'a str),
    /// Those that an object controls.
    Owner(Kind, &'a str),
    /// Those with such labels.
    Selected(&'a LabelSelector),
    /// All.
    Everything,
}

impl What<'_> {
    /// Lower wins: what is said of fewer pods.
    fn rank(&self) -> u8 {
        match self {
            Self::Pod(_) => 0,
            Self::Owner(..) => 1,
            Self::Selected(_) => 2,
            Self::Everything => 3,
        }
    }
}

impl Claim<'_> {
    /// The address that is asked for, if it is one.
    pub(super) fn vip(&self) -> Option<Vip> {
        self.vip
    }

    /// Whether it is about IPv4, or IPv6.
    pub(super) fn covers(&self, ipv4: bool) -> bool {
        self.vip.is_none_or(|vip| vip.is_ipv4() == ipv4)
    }

    fn precedence(&self) -> (u8, Age) {
        (self.target.what.rank(), age(self.egress))
    }
}

/// An Egress that has no effect.
pub(super) struct Void<'a> {
    pub(super) egress: &'a crd::Egress,
    pub(super) why: Finding<EgressReason>,
}

/// The claims in the order in which they win, and the Egresses that have no effect.
pub(super) fn claims<'a>(
    egresses: &'a [Arc<crd::Egress>],
    own_namespace: &str,
    vips: &Vips<'_>,
) -> (Vec<Claim<'a>>, Vec<Void<'a>>) {
    let mut claims = Vec::with_capacity(egresses.len());
    let mut voids = Vec::new();
    for egress in egresses.iter().map(|egress| &**egress) {
        match target(egress, own_namespace) {
            Ok(target) => claims.push(claim(egress, target, own_namespace, vips)),
            Err(why) => voids.push(Void { egress, why }),
        }
    }
    claims.sort_by_cached_key(Claim::precedence);
    (claims, voids)
}

/// Whose pods the Egress means, if it may.
fn target<'a>(
    egress: &'a crd::Egress,
    own_namespace: &str,
) -> Result<Target<'a>, Finding<EgressReason>> {
    let spec = &egress.spec;
    let kind: Kind = spec
        .kind
        .parse()
        .map_err(|why: UnknownKind| Finding::new(EgressReason::UnknownKind, why.to_string()))?;
    let given = |text: &'a Option<String>| text.as_deref().filter(|text| !text.is_empty());
    let of_egress = egress.metadata.namespace.as_deref().unwrap_or_default();
    let mut namespace = given(&spec.namespace).unwrap_or(of_egress);
    let invalid = |message: &str| Err(Finding::new(EgressReason::InvalidSpec, message));
    let what = match (kind, given(&spec.name), &spec.selector) {
        (Kind::Pod, Some(_), Some(_)) => {
            return invalid("selector and name exclude each other; remove one of them");
        }
        (Kind::Pod, None, Some(selector)) => What::Selected(selector),
        (_, _, Some(_)) => {
            return invalid("selector is for kind pod only; remove it, or use kind pod");
        }
        (Kind::Namespace, name, None) => {
            namespace = name.unwrap_or(namespace);
            What::Everything
        }
        (_, None, None) => return invalid("name is missing: name the object whose pods are meant"),
        (Kind::Pod, Some(name), None) => What::Pod(name),
        (kind, Some(name), None) => What::Owner(kind, name),
    };
    if namespace == of_egress || of_egress == own_namespace {
        Ok(Target { namespace, what })
    } else {
        Err(Finding::new(
            EgressReason::NotPermitted,
            format!(
                "pods of namespace {namespace} can be named only by Egresses of that namespace or \
                 of namespace {own_namespace}; move the Egress there"
            ),
        ))
    }
}

fn claim<'a>(
    egress: &'a crd::Egress,
    target: Target<'a>,
    own_namespace: &str,
    vips: &Vips<'_>,
) -> Claim<'a> {
    let spec = &egress.spec;
    let parsed = spec.ip.parse::<Vip>();
    let granted = match &parsed {
        Ok(vip) => granted(*vip, egress, own_namespace, vips),
        Err(why) => Err(Finding::new(EgressReason::VipNotFound, why.to_string())),
    };
    let (effect, trouble) = match granted {
        Ok(vip) => (Effect::Map(vip), None),
        Err(why) => match spec.when_unavailable {
            WhenUnavailable::Drop => (Effect::Hold, Some(why)),
            WhenUnavailable::NodeAddress => (Effect::Release, Some(why)),
        },
    };
    Claim { egress, target, effect, trouble, vip: parsed.ok() }
}

/// The VIP, if pods of the Egress may leave with it now.
fn granted(
    vip: Vip,
    egress: &crd::Egress,
    own_namespace: &str,
    vips: &Vips<'_>,
) -> Result<Vip, Finding<EgressReason>> {
    let Some(accepted) = vips.accepted.get(&vip) else {
        return Err(no_vip(vip, own_namespace, vips));
    };
    let namespace = egress.metadata.namespace.as_deref().unwrap_or_default();
    if !accepted.permits(namespace) {
        return Err(not_for(namespace, accepted));
    }
    let held_or_dropped =
        accepted.holder.is_some() || egress.spec.when_unavailable == WhenUnavailable::Drop;
    if held_or_dropped {
        return Ok(vip);
    }
    let message = format!("no node holds the address of Vip {}", key(accepted.object));
    Err(Finding::new(EgressReason::VipNotHeld, message))
}

fn no_vip(vip: Vip, own_namespace: &str, vips: &Vips<'_>) -> Finding<EgressReason> {
    let with_address = |refused: &&Refused<'_>| refused.vip == Some(vip);
    match vips.refused.iter().find(with_address) {
        Some(refused) => Finding::new(
            EgressReason::VipNotAccepted,
            format!("Vip {} is not accepted: {}", key(refused.object), refused.why.message),
        ),
        None => Finding::new(
            EgressReason::VipNotFound,
            format!("no Vip has the address {vip}; create one in namespace {own_namespace}"),
        ),
    }
}

fn not_for(namespace: &str, accepted: &Accepted<'_>) -> Finding<EgressReason> {
    let ObjectKey { namespace: own, .. } = key(accepted.object);
    let allowed = accepted.object.spec.namespaces.as_ref().map_or(own, listed);
    Finding::new(
        EgressReason::NotPermitted,
        format!(
            "Vip {} may be used by Egresses of namespace {allowed}; add {namespace} to its \
             spec.namespaces",
            key(accepted.object)
        ),
    )
}
