package document

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// endless are quantities that the library would reckon with for minutes or more.
var endless = []string{
	"1e9999999999", "1e2147483648", "1e2147483647", "1e-2147483648", "1e-9999999999", "-1e99999999", "+1.5E+1000", "0.1e-1000",
	"1e1000", "1E00001000", "1e18446744073709551617", "." + "5e5000",
	strings.Repeat("9", 300), "0." + strings.Repeat("1", 300), strings.Repeat("0", 300) + "1", strings.Repeat("7", 300) + "Ei",
}

var usual = []string{
	"0", "1", "100m", "1.5", "128Mi", "1Ei", "1E", "12e6", "1e3", "1E-3", "1e+18", "9223372036854775807", "0.000000001", "1e999", "1e-999", "1e0000000003", "1024",
	strings.Repeat("9", 100),
}

func podWith(quantity string) string {
	return `{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"c","resources":{"requests":{"memory":` + quantity + `}}}]}}`
}

func TestQuantitiesOutOfRange(t *testing.T) {
	pod := reflect.TypeFor[*corev1.Pod]()
	for _, q := range endless {
		for _, written := range []string{`"` + q + `"`, `"` + strings.Replace(q, "e", `\u0065`, 1) + `"`, `"` + strings.Replace(q, "0", `\u0030`, 1) + `","cpu":"1"`, `"` + q + `","memory":"1"`} {
			err := CheckQuantities([]byte(podWith(written)), pod)
			if err == nil || !strings.HasPrefix(err.Error(), "spec.containers[0].resources.requests.memory: quantity ") {
				t.Errorf("%.60s: got %v", written, err)
			}
		}
		if err := CheckProtobufQuantities(podMessage(q), pod); err == nil || !strings.Contains(err.Error(), "out of range") {
			t.Errorf("%.60s in protobuf: got %v", q, err)
		}
	}
	if err := CheckQuantities([]byte(podWith("1e9999999999")), pod); err == nil {
		t.Error("an unquoted number is taken")
	}
	for _, q := range usual {
		if err := CheckQuantities([]byte(podWith(`"`+q+`"`)), pod); err != nil {
			t.Errorf("%s: %v", q, err)
		}
		if err := CheckProtobufQuantities(podMessage(q), pod); err != nil {
			t.Errorf("%s in protobuf: %v", q, err)
		}
	}
}

// TestTextsLikeQuantities are no quantities: a commit's hash, a log line.
func TestTextsLikeQuantities(t *testing.T) {
	pod := corev1.Pod{}
	pod.Labels = map[string]string{"commit": "12e34567", "memory": "1e9999999999"}
	pod.Annotations = map[string]string{"digits": strings.Repeat("1", 1000)}
	pod.Spec.Containers = []corev1.Container{{Name: "1e99999", Image: "x:1e99999"}}
	data, err := json.Marshal(&pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckQuantities(data, reflect.TypeOf(pod)); err != nil {
		t.Error(err)
	}
	if data, err = pod.Marshal(); err != nil {
		t.Fatal(err)
	}
	if err := CheckProtobufQuantities(data, reflect.TypeOf(pod)); err != nil {
		t.Error(err)
	}
}

// TestQuantitiesEverywhere puts one at each kind of place: map, list, pointer,
// inlined struct.
func TestQuantitiesEverywhere(t *testing.T) {
	for _, c := range []struct {
		into any
		body string
	}{
		{corev1.LimitRange{}, `{"spec":{"limits":[{"type":"Container","max":{"cpu":%s}}]}}`},
		{corev1.ResourceQuota{}, `{"spec":{"hard":{"requests.cpu":%s}}}`},
		{corev1.PersistentVolume{}, `{"spec":{"capacity":{"storage":%s}}}`},
		{corev1.Node{}, `{"status":{"allocatable":{"cpu":%s}}}`},
		{corev1.Pod{}, `{"spec":{"volumes":[{"name":"a","emptyDir":{"sizeLimit":%s}}]}}`},
		{corev1.Pod{}, `{"spec":{"volumes":[{"downwardAPI":{"items":[{"resourceFieldRef":{"divisor":%s}}]}}]}}`},
		{corev1.Pod{}, `{"spec":{"overhead":{"cpu":%s}}}`},
		{corev1.Pod{}, `{"spec":{"ephemeralContainers":[{"resources":{"limits":{"cpu":%s}}}]}}`},
		{storagev1.CSIStorageCapacity{}, `{"capacity":%s}`},
		{autoscalingv2.HorizontalPodAutoscaler{}, `{"spec":{"metrics":[{"external":{"target":{"averageValue":%s}}}]}}`},
	} {
		for _, q := range []string{`"1e9999999999"`, `1e9999999999`} {
			if err := CheckQuantities([]byte(fmt.Sprintf(c.body, q)), reflect.TypeOf(c.into)); err == nil {
				t.Errorf("%T takes %s", c.into, fmt.Sprintf(c.body, q))
			}
		}
	}
}

// podMessage writes a Pod with a quantity that ParseQuantity never sees.
func podMessage(quantity string) []byte {
	field := func(number int, content ...byte) []byte {
		out := []byte{byte(number<<3 | lengthDelimited)}
		for n := len(content); ; n >>= 7 {
			if n < 0x80 {
				out = append(out, byte(n))
				break
			}
			out = append(out, byte(n)|0x80)
		}
		return append(out, content...)
	}
	value := field(2, field(1, []byte(quantity)...)...)
	entry := append(field(1, []byte("memory")...), value...)
	container := append(field(1, 'c'), field(8, field(2, entry...)...)...)
	return field(2, field(2, container...)...)
}

func TestPodMessage(t *testing.T) {
	var pod corev1.Pod
	if err := pod.Unmarshal(podMessage("1Gi")); err != nil {
		t.Fatal(err)
	}
	if got := pod.Spec.Containers[0].Resources.Requests.Memory().String(); got != "1Gi" {
		t.Fatalf("memory is %s", got)
	}
}

// FuzzQuantity reckons with every quantity that is taken: it must end.
func FuzzQuantity(f *testing.F) {
	for _, q := range append(append([]string{"", "e", "1e", "e9", "1eE9", "-", "1e+-5", "..1"}, usual...), endless...) {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckQuantity(s) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			if q, err := resource.ParseQuantity(s); err == nil {
				q.Add(resource.MustParse("1Gi"))
				_, _ = q.Cmp(resource.MustParse("1m")), q.String()
			}
		}()
		select {
		case <-done:
		case <-ctx.Done():
			t.Fatalf("%q takes longer than ten seconds", s)
		}
	})
}

// FuzzCheckQuantities decodes whatever is let through.
func FuzzCheckQuantities(f *testing.F) {
	for _, q := range append(usual[:len(usual):len(usual)], endless...) {
		f.Add([]byte(podWith(`"`+q+`"`)), false)
		f.Add(podMessage(q), true)
	}
	f.Add([]byte(podWith(`"\u0031e9999999999"`)), false)
	f.Fuzz(func(t *testing.T, data []byte, protobuf bool) {
		var pod corev1.Pod
		if protobuf && CheckProtobufQuantities(data, reflect.TypeOf(pod)) == nil {
			pod.Unmarshal(data)
		}
		if !protobuf && CheckQuantities(data, reflect.TypeOf(pod)) == nil {
			json.Unmarshal(data, &pod)
		}
	})
}

func BenchmarkCheckQuantities(b *testing.B) {
	pod := corev1.Pod{}
	pod.Name, pod.UID = "web-5f6d7c8b9-abcde", "0f3c2b1a-1e23-4567-89ab-cdef01234567"
	for range 10 {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "c", Image: "registry.example/team/app:v1.2.3", TerminationMessagePath: "/dev/termination-log"})
	}
	data, _ := json.Marshal(&pod)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if CheckQuantities(data, reflect.TypeOf(pod)) != nil {
			b.Fatal("refused")
		}
	}
}
