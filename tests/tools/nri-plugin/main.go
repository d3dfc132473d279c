// A plugin for the tests of NRI: does as its script says, and writes down what it is told.
//
// Built from the Go module's own stub, so that a plugin that works elsewhere is known to work with berth. Where the stub
// cannot do something (evict a container, say nothing, send rubbish), it is done beneath the stub.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protojson"
)

// Script says what the plugin does. An installed plugin gets it as its configuration, another one as a file.
type Script struct {
	// Log gets a line of JSON for each call.
	Log string `json:"log"`
	// Events to subscribe to, separated by commas; all without it.
	Events string `json:"events"`
	// Create says what to answer to CreateContainer, by the container's name.
	Create map[string]Answer `json:"create"`
	// Update and Stop: the same for UpdateContainer and StopContainer.
	Update map[string]Answer `json:"update"`
	Stop   map[string]Answer `json:"stop"`
	// Hang, Die: calls over which it does.
	Hang []string `json:"hang"`
	Die  []string `json:"die"`
	// Fail: calls that it answers with these errors.
	Fail map[string]string `json:"fail"`
	// Reject is the reason for which it does not like any adjustment.
	Reject string `json:"reject"`
}

// Answer to a call.
type Answer struct {
	Adjust  json.RawMessage `json:"adjust"`
	Updates []Update        `json:"updates"`
}

// Update of a container, by its name.
type Update struct {
	Container     string          `json:"container"`
	Resources     json.RawMessage `json:"resources"`
	IgnoreFailure bool            `json:"ignore_failure"`
}

// Line of the log.
type Line struct {
	Call      string          `json:"call"`
	Pod       string          `json:"pod,omitempty"`
	Container string          `json:"container,omitempty"`
	Pods      []string        `json:"pods,omitempty"`
	Found     []string        `json:"found,omitempty"`
	Seen      json.RawMessage `json:"seen,omitempty"`
	Text      string          `json:"text,omitempty"`
}

type plugin struct {
	mutex  sync.Mutex
	script Script
	// Ids of containers by their names.
	ids map[string]string
}

func main() {
	mode := flag.String("mode", "stub", "stub, silent, rubbish, evict or old")
	name := flag.String("name", "", "name of the plugin")
	index := flag.String("index", "", "its number")
	socket := flag.String("socket", "", "where to connect")
	file := flag.String("script", "", "what to do")
	evict := flag.String("evict", "", "id of the container to evict")
	flag.Parse()

	p := &plugin{ids: map[string]string{}}
	if *file != "" {
		text, err := os.ReadFile(*file)
		must(err)
		must(json.Unmarshal(text, &p.script))
	}
	switch *mode {
	case "stub":
		p.run(*name, *index, *socket)
	case "silent":
		defer dial(*socket).Close()
		time.Sleep(time.Hour)
	case "rubbish":
		conn := dial(*socket)
		defer conn.Close()
		_, err := conn.Write([]byte("\xff\xff\xff\xff\xff\xff\xff\xff rubbish"))
		must(err)
		time.Sleep(time.Hour)
	case "evict":
		p.evict(*name, *index, *socket, *evict)
	case "old":
		p.old(*name, *index, *socket)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func dial(socket string) net.Conn {
	conn, err := net.Dial("unix", socket)
	must(err)
	return conn
}

func (p *plugin) run(name, index, socket string) {
	var options []stub.Option
	// An installed plugin finds all of this in its environment.
	if name != "" {
		options = append(options, stub.WithPluginName(name), stub.WithPluginIdx(index), stub.WithSocketPath(socket))
	}
	s, err := stub.New(p, options...)
	must(err)
	go p.obey(s)
	must(s.Run(context.Background()))
}

// obey makes the updates that come on standard input, one a line.
func (p *plugin) obey(s stub.Stub) {
	commands := json.NewDecoder(os.Stdin)
	for {
		var updates []Update
		if commands.Decode(&updates) != nil {
			return
		}
		failed, err := s.UpdateContainers(p.updates(updates))
		line := Line{Call: "updated"}
		for _, update := range failed {
			line.Found = append(line.Found, update.GetContainerId())
		}
		if err != nil {
			line.Text = err.Error()
		}
		p.write(line)
	}
}

func (p *plugin) write(line Line) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	file, err := os.OpenFile(p.script.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(err)
	defer file.Close()
	must(json.NewEncoder(file).Encode(line))
}

func (p *plugin) updates(wanted []Update) (updates []*api.ContainerUpdate) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, update := range wanted {
		id, known := p.ids[update.Container]
		if !known {
			id = update.Container
		}
		resources := &api.LinuxResources{}
		must(protojson.Unmarshal(update.Resources, resources))
		updates = append(updates, &api.ContainerUpdate{
			ContainerId:   id,
			Linux:         &api.LinuxContainerUpdate{Resources: resources},
			IgnoreFailure: update.IgnoreFailure,
		})
	}
	return updates
}

// told writes a call down, and misbehaves over it if the script says so.
func (p *plugin) told(call string, pod *api.PodSandbox, container *api.Container) error {
	line := Line{Call: call, Pod: pod.GetName(), Container: container.GetName()}
	if container != nil {
		p.mutex.Lock()
		p.ids[container.GetName()] = container.GetId()
		p.mutex.Unlock()
		seen, err := protojson.Marshal(container)
		must(err)
		line.Seen = seen
	} else if pod != nil {
		seen, err := protojson.Marshal(pod)
		must(err)
		line.Seen = seen
	}
	p.write(line)
	for _, name := range p.script.Hang {
		if name == call {
			time.Sleep(time.Hour)
		}
	}
	for _, name := range p.script.Die {
		if name == call {
			os.Exit(1)
		}
	}
	if text, fails := p.script.Fail[call]; fails {
		return errors.New(text)
	}
	return nil
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	if config != "" {
		must(json.Unmarshal([]byte(config), &p.script))
	}
	p.write(Line{Call: "Configure", Text: runtime + " " + version})
	if p.script.Events == "" {
		return 0, nil
	}
	return api.ParseEventMask(p.script.Events)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	line := Line{Call: "Synchronize"}
	for _, pod := range pods {
		line.Pods = append(line.Pods, pod.GetName())
	}
	p.mutex.Lock()
	for _, container := range containers {
		p.ids[container.GetName()] = container.GetId()
		line.Found = append(line.Found, container.GetName()+" "+container.GetState().String())
	}
	p.mutex.Unlock()
	p.write(line)
	return nil, p.told("Synchronized", nil, nil)
}

func (p *plugin) Shutdown(context.Context) {
	p.write(Line{Call: "Shutdown"})
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("RunPodSandbox", pod, nil)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, resources *api.LinuxResources) error {
	seen, err := protojson.Marshal(resources)
	must(err)
	p.write(Line{Call: "limits", Pod: pod.GetName(), Seen: seen})
	return p.told("UpdatePodSandbox", pod, nil)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("PostUpdatePodSandbox", pod, nil)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("StopPodSandbox", pod, nil)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("RemovePodSandbox", pod, nil)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.told("CreateContainer", pod, container); err != nil {
		return nil, nil, err
	}
	answer, wanted := p.script.Create[container.GetName()]
	if !wanted {
		return nil, nil, nil
	}
	adjust := &api.ContainerAdjustment{}
	if answer.Adjust != nil {
		must(protojson.Unmarshal(answer.Adjust, adjust))
	}
	return adjust, p.updates(answer.Updates), nil
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostCreateContainer", pod, container)
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("StartContainer", pod, container)
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostStartContainer", pod, container)
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	err := p.told("UpdateContainer", pod, container)
	return p.updates(p.script.Update[container.GetName()].Updates), err
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostUpdateContainer", pod, container)
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	err := p.told("StopContainer", pod, container)
	return p.updates(p.script.Stop[container.GetName()].Updates), err
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("RemoveContainer", pod, container)
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	seen, err := protojson.Marshal(request.GetOwners())
	must(err)
	p.write(Line{Call: "ValidateContainerAdjustment", Container: request.GetContainer().GetName(), Seen: seen})
	if p.script.Reject != "" {
		return errors.New(p.script.Reject)
	}
	return nil
}

// oldest are the events that were there from the beginning.
const oldest = 1<<api.Event_REMOVE_CONTAINER - 1

// connect registers without the stub, and serves only these methods.
func connect(name, index, socket string, methods map[string]ttrpc.Method) api.RuntimeService {
	mux := multiplex.Multiplex(dial(socket))
	listener, err := mux.Listen(multiplex.PluginServiceConn)
	must(err)
	server, err := ttrpc.NewServer()
	must(err)
	methods["Configure"] = method(func(*api.ConfigureRequest) *api.ConfigureResponse {
		return &api.ConfigureResponse{Events: oldest}
	})
	methods["Synchronize"] = method(func(*api.SynchronizeRequest) *api.SynchronizeResponse {
		return &api.SynchronizeResponse{}
	})
	server.Register("nri.pkg.api.v1alpha1.Plugin", methods)
	go server.Serve(context.Background(), listener)
	conn, err := mux.Open(multiplex.RuntimeServiceConn)
	must(err)
	runtime := api.NewRuntimeClient(ttrpc.NewClient(conn))
	request := &api.RegisterPluginRequest{PluginName: name, PluginIdx: index}
	_, err = runtime.RegisterPlugin(context.Background(), request)
	must(err)
	return runtime
}

func method[Q, A any](answer func(*Q) *A) ttrpc.Method {
	return func(_ context.Context, decode func(interface{}) error) (interface{}, error) {
		request := new(Q)
		if err := decode(request); err != nil {
			return nil, err
		}
		return answer(request), nil
	}
}

// evict asks for the end of a container, and ends.
func (p *plugin) evict(name, index, socket, container string) {
	runtime := connect(name, index, socket, map[string]ttrpc.Method{})
	_, err := runtime.UpdateContainers(context.Background(), &api.UpdateContainersRequest{
		Evict: []*api.ContainerEviction{{ContainerId: container, Reason: "the test wants it"}},
	})
	must(err)
}

// old is a plugin of before version 0.10, which knows one call for all that wants no answer of its own.
func (p *plugin) old(name, index, socket string) {
	connect(name, index, socket, map[string]ttrpc.Method{
		"CreateContainer": method(func(request *api.CreateContainerRequest) *api.CreateContainerResponse {
			p.write(Line{Call: "CreateContainer", Container: request.GetContainer().GetName()})
			return &api.CreateContainerResponse{}
		}),
		"StopContainer": method(func(request *api.StopContainerRequest) *api.StopContainerResponse {
			p.write(Line{Call: "StopContainer", Container: request.GetContainer().GetName()})
			return &api.StopContainerResponse{}
		}),
		"StateChange": method(func(event *api.StateChangeEvent) *api.Empty {
			p.write(Line{
				Call:      event.GetEvent().PrettyName(),
				Pod:       event.GetPod().GetName(),
				Container: event.GetContainer().GetName(),
			})
			return &api.Empty{}
		}),
	})
	time.Sleep(time.Hour)
}
