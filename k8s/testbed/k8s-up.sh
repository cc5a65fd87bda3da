#!/usr/bin/env bash
# A real one-node Kubernetes below STATE: etcd, API server, controller manager, scheduler, containerd, kubelet, kube-proxy. They
# listen on 127.0.0.1; those that pods or the API server must reach on 10.99.0.1, an address that is added to `lo`. kube-proxy's
# rules are this machine's iptables. Stop it all with k8s-down.sh STATE.
# usage: DOCKER_HOST=... k8s-up.sh BIN STATE     root, Linux; prints the line that points a client to it.
#   BIN: what k8s-build.sh prints. The images come from the engine, where base-image.sh put them, as there is no registry.
#
# STATE must not have "envfarm" in its path: a container sees the engine's paths in /proc/self/mountinfo, and a test looks there.
# NetworkPolicy is accepted and not enforced: the network is a plain bridge.
set -euo pipefail
B=${1:?usage: k8s-up.sh BIN STATE}
C=${2:?usage: k8s-up.sh BIN STATE}
START=$(cd "$(dirname "$0")" && pwd)/k8s-start.sh
PORT=${K8S_PORT:-16443}
NODE=farm-node ADDRESS=10.99.0.1 PODS=10.88.0.0/16
SECRET=$C/certs LOG=$C/log RUN=$C/run
if (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then
  echo "somebody listens on 127.0.0.1:$PORT. If that is another test bed's cluster: there is room for one, k8s-down.sh ends it" >&2
  exit 1
fi
umask 077
mkdir -p "$C" "$SECRET" "$C"/{etcd,cni,kubelet} "$LOG" "$RUN"
chmod 711 "$C" "$C/kubelet" "$RUN" # containers' users reach their own files through them
started=$SECONDS
say() { echo "$((SECONDS - started)) s: $*" >&2; }

missing=
for need in etcd:etcd-server containerd:containerd runc:runc kubectl:kubernetes-client ip:iproute2 openssl:openssl conntrack:conntrack iptables:iptables; do
  command -v "${need%%:*}" >/dev/null || missing="$missing ${need##*:}"
done
[ -x /usr/lib/cni/bridge ] || missing="$missing containernetworking-plugins"
if [ -n "$missing" ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
[ ! -e "$RUN/kubelet.pid" ] || { echo "$C holds a cluster already: k8s-down.sh $C" >&2; exit 1; }

run() { # NAME COMMAND...: in the background, in a session of its own
  setsid nohup "${@:2}" >"$LOG/$1.log" 2>&1 </dev/null &
  echo $! >"$RUN/$1.pid"
}
until_ready() { # SECONDS COMPONENT COMMAND...
  for _ in $(seq $(($1 * 5))); do
    "${@:3}" >/dev/null 2>&1 && return
    kill -0 "$(cat "$RUN/$2.pid")" 2>/dev/null || break
    sleep 0.2
  done
  echo "$2 did not come up:" >&2
  tail -n 20 "$LOG/$2.log" >&2
  exit 1
}

# --- who is who: tokens for the API server's clients, certificates between it and the kubelet ---
CA=$SECRET/ca.crt
[ -f "$SECRET/sa.key" ] || openssl genrsa -out "$SECRET/sa.key" 2048 2>/dev/null
openssl rsa -in "$SECRET/sa.key" -pubout -out "$SECRET/sa.pub" 2>/dev/null
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=farm -keyout "$SECRET/ca.key" -out "$CA" 2>/dev/null
certificate() { # NAME SUBJECT ALTERNATIVE-NAMES
  openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$SECRET/$1.key" -out "$SECRET/$1.csr" 2>/dev/null
  openssl x509 -req -days 30 -in "$SECRET/$1.csr" -CA "$CA" -CAkey "$SECRET/ca.key" -CAcreateserial \
    -extfile <(echo "subjectAltName=$3") -out "$SECRET/$1.crt" 2>/dev/null
}
certificate apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$ADDRESS,IP:10.96.0.1,DNS:kubernetes.default.svc"
certificate apiserver-at-kubelet /O=system:masters/CN=kube-apiserver DNS:kube-apiserver
certificate kubelet "/CN=system:node:$NODE" "IP:$ADDRESS"
: >"$SECRET/tokens.csv"
client() { # NAME USER GROUP
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$1,\"$3\"" >>"$SECRET/tokens.csv"
  cat >"$SECRET/$1.kubeconfig" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: farm, cluster: {server: "https://$ADDRESS:$PORT", certificate-authority: "$CA"}}]
users: [{name: u, user: {token: "$token"}}]
contexts: [{name: farm, context: {cluster: farm, user: u}}]
current-context: farm
CONFIG
}
client admin admin system:masters
client node system:node:$NODE system:nodes
client kcm system:kube-controller-manager ""
client sched system:kube-scheduler ""
client proxy system:kube-proxy ""

# --- the node's own settings ---
cat >"$C/containerd.toml" <<CONFIG
version = 2
root = "$C/containerd"
state = "$RUN/containerd"
oom_score = 0
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/envfarm/pause:latest"
  restrict_oom_score_adj = true # where there is no CAP_SYS_RESOURCE a negative oom_score_adj is refused
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$C/cni"
CONFIG
cat >"$C/cni/10-farm.conflist" <<CONFIG
{"cniVersion": "0.4.0", "name": "farm", "plugins": [
 {"type": "bridge", "bridge": "farm0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "$RUN/addresses", "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
CONFIG
cat >"$C/kubelet.yaml" <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $ADDRESS
port: 10250
readOnlyPort: 0
healthzPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: "$CA"}}
authorization: {mode: AlwaysAllow} # of those with a certificate, and that is the API server
tlsCertFile: $SECRET/kubelet.crt
tlsPrivateKeyFile: $SECRET/kubelet.key
cgroupDriver: cgroupfs
failSwapOn: false
oomScoreAdj: 0
maxPods: 400
podPidsLimit: 256
featureGates: {SizeMemoryBackedVolumes: true} # the rule since 1.22: a tmpfs has the size that the pod asked for
makeIPTablesUtilChains: false
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 2s
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
CONFIG

# --- up ---
umask 022 # a node's: with a stricter one containerd makes roots of containers that only root can enter
ip addr show dev lo | grep -q "$ADDRESS/32" || ip addr add $ADDRESS/32 dev lo
run etcd etcd --data-dir "$C/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls "http://127.0.0.1:$((PORT + 1))" --advertise-client-urls "http://127.0.0.1:$((PORT + 1))" \
  --listen-peer-urls "http://127.0.0.1:$((PORT + 2))" --initial-advertise-peer-urls "http://127.0.0.1:$((PORT + 2))" \
  --initial-cluster "default=http://127.0.0.1:$((PORT + 2))"
cat >"$RUN/apiserver.sh" <<START
#!/bin/sh
exec "$B/kube-apiserver" --etcd-servers=http://127.0.0.1:$((PORT + 1)) --secure-port=$PORT --bind-address=$ADDRESS \
  --advertise-address=$ADDRESS --tls-cert-file="$SECRET/apiserver.crt" --tls-private-key-file="$SECRET/apiserver.key" \
  --token-auth-file="$SECRET/tokens.csv" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --kubelet-certificate-authority="$CA" --kubelet-client-certificate="$SECRET/apiserver-at-kubelet.crt" \
  --kubelet-client-key="$SECRET/apiserver-at-kubelet.key" --kubelet-preferred-address-types=InternalIP \
  --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file="$SECRET/sa.key" \
  --service-account-key-file="$SECRET/sa.pub" --service-cluster-ip-range=10.96.0.0/16 --profiling=false
START
cat >"$RUN/kubelet.sh" <<START
#!/bin/sh
exec "$B/kubelet" --config="$C/kubelet.yaml" --kubeconfig="$SECRET/node.kubeconfig" --hostname-override=$NODE --node-ip=$ADDRESS \
  --container-runtime=remote --container-runtime-endpoint="unix://$RUN/containerd.sock" --root-dir="$C/kubelet" --cert-dir="$SECRET"
START
chmod 700 "$RUN"/*.sh
"$START" "$C" apiserver
run containerd containerd -c "$C/containerd.toml" -l warn
until_ready 30 containerd ctr -a "$RUN/containerd.sock" version
printf 'FROM envfarm/base\nCMD ["/bin/sleep", "infinity"]\n' | DOCKER_BUILDKIT=0 docker build -q -t envfarm/pause - >/dev/null
docker save envfarm/base envfarm/python envfarm/pause envfarm/worker:latest | ctr -a "$RUN/containerd.sock" -n k8s.io images import - >/dev/null
say "containerd has the images"
export KUBECONFIG=$SECRET/admin.kubeconfig
until_ready 120 apiserver kubectl get --raw /readyz
say "the API server answers"
run kcm "$B/kube-controller-manager" --kubeconfig="$SECRET/kcm.kubeconfig" --use-service-account-credentials=true \
  --service-account-private-key-file="$SECRET/sa.key" --root-ca-file="$CA" --leader-elect=false --port=0 --secure-port=0 \
  --kube-api-qps=200 --kube-api-burst=400
run sched "$B/kube-scheduler" --kubeconfig="$SECRET/sched.kubeconfig" --leader-elect=false --port=0 --secure-port=0
"$START" "$C" kubelet
# every connection through a Service comes from the node: pods of one bridge would answer each other past the node's tables
run proxy "$B/kube-proxy" --kubeconfig="$SECRET/proxy.kubeconfig" --hostname-override=$NODE --proxy-mode=iptables --masquerade-all \
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
  --healthz-bind-address= --metrics-bind-address="127.0.0.1:$((PORT + 3))"
cat >"$RUN/no-services.sh" <<CLEAN
#!/bin/sh
# takes kube-proxy's rules out of this machine's tables, and the empty chains that it leaves
"$B/kube-proxy" --cleanup
for table in nat mangle filter; do
  for chain in KUBE-MARK-DROP KUBE-MARK-MASQ KUBE-PROXY-CANARY; do
    iptables -t \$table -F \$chain && iptables -t \$table -X \$chain
  done
done
CLEAN
chmod 700 "$RUN/no-services.sh"
ready() { [ "$(kubectl get node $NODE -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}{.spec.taints}')" = True ]; }
until_ready 120 kubelet ready
until_ready 60 kcm kubectl get serviceaccount default
say "the node is ready"
kubectl version --short 2>/dev/null | grep Server >&2 || true
echo "export KUBECONFIG=$KUBECONFIG"
