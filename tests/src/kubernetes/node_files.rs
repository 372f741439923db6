//! The configuration of a node's programs.

use std::path::Path;

/// The image that runs in pods of tests and keeps the namespaces of every pod.
pub(super) const BUSYBOX: &str = "localhost/busybox:1";

/// Of containerd.
pub(super) fn containerd(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"version = 2
root = "{directory}/containerd"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"
"#
    )
}

/// Of kubelet. Its cgroup root is the node's control group. However full the disk is, images stay:
/// nothing could bring them back.
pub(super) fn kubelet(group: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: /{group}
enforceNodeAllocatable: []
evictionHard: {{}}
imageGCHighThresholdPercent: 100
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: \"\"
volumePluginDir: /run/kubelet-plugins
maxPods: 250
serializeImagePulls: false
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
"
    )
}

/// Of the pods' network: the bridge, the addresses and the routes that the laboratory made.
/// The laboratory masquerades, as flannel does.
pub(super) fn cni(number: usize) -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "mtu": 1450, "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": {{"type": "host-local", "dataDir": "/run/cni-ipam",
      "ranges": [[{{"subnet": "10.244.{number}.0/24"}}], [{{"subnet": "fd00:244:{number}::/64"}}]],
      "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#
    )
}

/// The node as the API has it before its kubelet starts: with the part of the pods' network that
/// the laboratory routes to it.
pub(super) fn object(name: &str, number: usize) -> String {
    format!(
        "apiVersion: v1
kind: Node
metadata:
  name: {name}
  labels: {{kubernetes.io/hostname: {name}}}
spec:
  podCIDR: 10.244.{number}.0/24
  podCIDRs: [10.244.{number}.0/24, \"fd00:244:{number}::/64\"]
---
"
    )
}

/// Kubelet's user may also do what kube-proxy has to.
pub(super) const PROXY_ROLE_BINDING: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-bed-node-proxier}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:node-proxier'}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:nodes'}]
";
