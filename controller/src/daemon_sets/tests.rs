use rstest::rstest;

use super::*;

fn mapper(spec: &Value) -> EgressMapper {
    let object = json!({
        "apiVersion": "egress.mapper.com/v1alpha1",
        "kind": "EgressMapper",
        "metadata": { "name": "example", "namespace": "default", "uid": "u1" },
        "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn both(spec: &Value) -> [DaemonSet; 2] {
    let sets = daemon_sets(&mapper(spec), "default").into_iter().map(Result::unwrap);
    sets.collect::<Vec<_>>().try_into().unwrap()
}

fn images() -> Value {
    json!({ "KubeEgressImage": "a:1", "KeepalivedVIPImage": "k:1" })
}

fn with(field: &str, value: Value) -> Value {
    let mut spec = images();
    spec[field] = value;
    spec
}

fn container(set: &DaemonSet) -> &Value {
    &set.object["spec"]["template"]["spec"]["containers"][0]
}

fn env(set: &DaemonSet, name: &str) -> Option<String> {
    let all = container(set)["env"].as_array().unwrap();
    let found = all.iter().find(|variable| variable["name"] == name)?;
    Some(found["value"].as_str()?.to_owned())
}

#[test]
fn selectors_are_those_that_were_published_and_fit_the_pods() {
    let [agent, keepalived] = both(&images());
    assert_eq!(
        agent.object["spec"]["selector"],
        json!({ "matchLabels": { "app": "kube-egress" } })
    );
    assert_eq!(
        keepalived.object["spec"]["selector"],
        json!({ "matchLabels": { "name": "kube-keepalived-vip" } })
    );
    for set in [agent, keepalived] {
        let labels = &set.object["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels, &set.object["spec"]["selector"]["matchLabels"]);
        assert_eq!(set.object["metadata"]["ownerReferences"][0]["uid"], "u1");
        assert_eq!(set.object["metadata"]["annotations"][DIGEST], set.digest.as_str());
    }
}

#[rstest]
#[case(json!("5"), &["--update-interval=5s"])]
#[case(json!("7s"), &["--update-interval=7s"])]
#[case(json!("99999"), &["--update-interval=3600s"])]
#[case(json!(""), &[])]
#[case(json!("0"), &[])]
fn an_interval_that_agents_would_refuse_is_never_passed_on(
    #[case] interval: Value,
    #[case] args: &[&str],
) {
    let [agent, _] = both(&with("UpdateInterval", interval));
    assert_eq!(container(&agent)["args"], json!(args));
}

#[test]
fn agents_are_strict_when_that_is_asked_for() {
    for (strict, args) in [(true, json!(["--strict-pods"])), (false, json!([]))] {
        let [agent, _] = both(&with("strictPods", json!(strict)));
        assert_eq!(container(&agent)["args"], args);
    }
}

#[rstest]
#[case(100, "100")]
#[case(127, "120")]
#[case(5, "10")]
fn adverts_are_counted_in_hundredths_of_a_second(#[case] millis: u32, #[case] passed_on: &str) {
    let [_, keepalived] = both(&with("advertIntervalMillis", json!(millis)));
    assert_eq!(env(&keepalived, "ADVERT_INTERVAL_MS").as_deref(), Some(passed_on));
}

#[rstest]
#[case(json!({}), None)]
#[case(json!({ "adverts": "Multicast" }), None)]
#[case(json!({ "adverts": "Unicast" }), Some("unicast"))]
fn adverts_go_to_a_group_unless_asked_otherwise(
    #[case] spec: Value,
    #[case] passed_on: Option<&str>,
) {
    let adverts = spec.get("adverts").cloned().unwrap_or(Value::Null);
    let [_, keepalived] = both(&with("adverts", adverts));
    assert_eq!(env(&keepalived, "ADVERTS").as_deref(), passed_on);
}

#[test]
fn the_interface_reaches_both() {
    let [agent, keepalived] = both(&with("InterfaceName", json!("eth1")));
    assert_eq!(container(&agent)["args"], json!(["--interface=eth1"]));
    assert_eq!(env(&keepalived, "INTERFACE_NAME").as_deref(), Some("eth1"));
    assert_eq!(
        container(&keepalived)["args"],
        json!(["--services-configmap=default/vip-configmap"])
    );
}

#[test]
fn devices_are_mounted_only_when_asked_for() {
    let mounts = |set: &DaemonSet| {
        let all = container(set)["volumeMounts"].as_array().unwrap().clone();
        all.iter().any(|mount| mount["mountPath"] == "/dev")
    };
    let [_, without] = both(&images());
    let [_, with] = both(&with("NeedMountDev", json!(true)));
    assert_eq!((mounts(&without), mounts(&with)), (false, true));
    assert_eq!(container(&without)["securityContext"]["privileged"], false);
    assert_eq!(container(&with)["securityContext"]["privileged"], true);
}

#[test]
fn only_gateways_run_keepalived_and_every_node_an_agent() {
    let selector = json!({
        "matchLabels": { "gateway": "yes" },
        "matchExpressions": [{ "key": "zone", "operator": "NotIn", "values": ["c"] }],
    });
    let [agent, keepalived] = both(&with("gatewaySelector", selector));
    assert_eq!(agent.object["spec"]["template"]["spec"].get("affinity"), None);
    let terms = &keepalived.object["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"];
    assert_eq!(
        terms,
        &json!([{ "matchExpressions": [
            { "key": "gateway", "operator": "In", "values": ["yes"] },
            { "key": "zone", "operator": "NotIn", "values": ["c"] },
        ] }])
    );
    let [_, all] = both(&with("gatewaySelector", json!({})));
    assert_eq!(all.object["spec"]["template"]["spec"].get("affinity"), None);
}

#[test]
fn a_digest_changes_with_what_is_asked_for_and_not_otherwise() {
    let digests = |spec: Value| both(&spec).map(|set| set.digest);
    let [agent, keepalived] = digests(images());
    assert_eq!(digests(images()), [agent.clone(), keepalived.clone()]);
    let [other, same] = digests(with("KubeEgressImage", json!("a:2")));
    assert_ne!(other, agent);
    assert_eq!(same, keepalived);
}

#[rstest]
#[case("ssheehy/kube-egress:0.3.1", false)]
#[case("docker.io/ssheehy/kube-egress", false)]
#[case("registry:5000/mkimuram/kube-egress@sha256:00", false)]
#[case("localhost/kube-egress:0.1.0", true)]
#[case("registry:5000/notssheehy/kube-egress", true)]
fn images_of_the_predecessor_are_told_from_ours(#[case] image: &str, #[case] usable: bool) {
    let sets = daemon_sets(&mapper(&with("KubeEgressImage", json!(image))), "default");
    assert_eq!(sets[0].is_ok(), usable);
    assert!(sets[1].is_ok());
}

#[test]
fn an_image_that_is_missing_is_named_and_the_other_daemon_set_made() {
    let sets = daemon_sets(&mapper(&json!({ "KeepalivedVIPImage": "k:1" })), "default");
    let error = sets[0].clone().unwrap_err().to_string();
    assert_eq!(error, "KubeEgressImage is not set; name the image of kube-egress");
    assert!(sets[1].is_ok());
}
