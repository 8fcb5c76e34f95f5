// promconfig prints, as JSON, the scrape configs that prometheus-operator generates for the ServiceMonitors and
// PodMonitors on standard input (YAML documents), and fails where prometheus-operator would reject one.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus-operator/prometheus-operator/pkg/assets"
	"github.com/prometheus-operator/prometheus-operator/pkg/operator"
	prometheusoperator "github.com/prometheus-operator/prometheus-operator/pkg/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/yaml"
)

// monitors are the objects that were read.
type monitors struct {
	services []*monitoringv1.ServiceMonitor
	pods     []*monitoringv1.PodMonitor
}

func main() {
	configs, err := run(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "promconfig:", err)
		os.Exit(1)
	}
	fmt.Println(string(configs))
}

func run(input io.Reader) ([]byte, error) {
	found, err := read(input)
	if err != nil {
		return nil, err
	}
	config, err := generate(found)
	if err != nil {
		return nil, err
	}
	var whole struct {
		ScrapeConfigs json.RawMessage `json:"scrape_configs"`
	}
	err = yaml.Unmarshal(config, &whole)
	return whole.ScrapeConfigs, err
}

func read(input io.Reader) (monitors, error) {
	var found monitors
	documents := utilyaml.NewYAMLReader(bufio.NewReader(input))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		if err := found.add(document); err != nil {
			return found, err
		}
	}
}

// add parses one document. A field that the kind does not have is an error.
func (m *monitors) add(document []byte) error {
	if len(bytes.TrimSpace(document)) == 0 {
		return nil
	}
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	switch kind.Kind {
	case monitoringv1.ServiceMonitorsKind:
		monitor := &monitoringv1.ServiceMonitor{}
		m.services = append(m.services, monitor)
		return yaml.UnmarshalStrict(document, monitor)
	case monitoringv1.PodMonitorsKind:
		monitor := &monitoringv1.PodMonitor{}
		m.pods = append(m.pods, monitor)
		return yaml.UnmarshalStrict(document, monitor)
	default:
		return fmt.Errorf("kind %q: write ServiceMonitors and PodMonitors", kind.Kind)
	}
}

// generate has prometheus-operator select and check the monitors, for a Prometheus that takes all of them, and write
// that Prometheus's configuration.
func generate(found monitors) ([]byte, error) {
	ctx := context.Background()
	server := &monitoringv1.Prometheus{ObjectMeta: metav1.ObjectMeta{Namespace: "monitoring", Name: "prometheus"}}
	server.Spec.ServiceMonitorSelector = &metav1.LabelSelector{}
	server.Spec.PodMonitorSelector = &metav1.LabelSelector{}
	store := assets.NewTestStoreBuilder()
	logger := slog.New(slog.DiscardHandler)
	rejections := record.NewFakeRecorder(len(found.services) + len(found.pods)) // it blocks when it is full
	metrics := operator.NewMetrics(prometheus.NewRegistry())
	selector, err := prometheusoperator.NewResourceSelector(logger, server, store, nil, metrics, rejections)
	if err != nil {
		return nil, err
	}
	services, err := selector.SelectServiceMonitors(ctx, list(found.services))
	if err != nil {
		return nil, err
	}
	pods, err := selector.SelectPodMonitors(ctx, list(found.pods))
	if err != nil {
		return nil, err
	}
	if err := joined(rejections); err != nil {
		return nil, err
	}
	generator, err := prometheusoperator.NewConfigGenerator(logger, server)
	if err != nil {
		return nil, err
	}
	return generator.GenerateServerConfiguration(
		server, services.ValidResources(), pods.ValidResources(), nil, nil, store, nil, nil, nil, nil)
}

// list gives all of the monitors, of whatever namespace, to a selector that asks for those of one.
func list[T any](monitors []T) prometheusoperator.ListAllByNamespaceFn {
	return func(_ string, _ labels.Selector, add cache.AppendFunc) error {
		for _, monitor := range monitors {
			add(monitor)
		}
		return nil
	}
}

// joined makes one error of what the operator would have written into Events. It tells nobody else.
func joined(rejections *record.FakeRecorder) error {
	close(rejections.Events)
	var errs []error
	for event := range rejections.Events {
		errs = append(errs, errors.New(event))
	}
	return errors.Join(errs...)
}
