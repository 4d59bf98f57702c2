// Command load is a client of MLflow's REST API that asks as often as it can: N clients, each with one
// kept connection, each logging one run after another by eight requests. It prints one JSON object.
//
// Raw HTTP/1.1 on purpose: a library's client would take more of the machine than the servers under
// test (this one takes 0.02 to 0.1 ms of processor time a request).
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	api     = "/api/2.0/mlflow/"
	timeout = 60 * time.Second
)

var (
	target     = flag.String("target", "", "HOST:PORT")
	clients    = flag.Int("clients", 1, "how many clients")
	seconds    = flag.Float64("seconds", 4, "how long is measured")
	warm       = flag.Float64("warm", 0.5, "seconds before that, which count for no rate and no latency")
	experiment = flag.String("experiment", "0", "the experiment's id")
	limit      = flag.Int("runs", 0, "each client logs so many runs, however long that takes; all of it is measured")

	measuring, stopping atomic.Bool
	head                []byte // the headers that are the same in every request
)

// client is one kept connection and what it met.
type client struct {
	connection net.Conn
	reader     *bufio.Reader
	requests   int // all, with those before and after the measured time
	measured   []float64
	answered   int // those of them that a 200 answered
	runs       int // whole flows that ended in the measured time
	fast       int // answers that name the fast path as who gave them, of all
	ok         map[string]int
	errors     map[string]int
	first      string
}

func main() {
	flag.Parse()
	head = fmt.Appendf(nil, "Host: %s\r\nUser-Agent: load\r\nAccept: */*\r\nContent-Type: application/json\r\n", *target)
	// Not an argument: those everybody on the machine can read.
	if authorization := os.Getenv("LOAD_AUTHORIZATION"); authorization != "" {
		head = fmt.Appendf(head, "Authorization: %s\r\n", authorization)
	}
	all := make([]*client, *clients)
	measuring.Store(*limit > 0)
	var ended sync.WaitGroup
	for number := range all {
		all[number] = &client{ok: map[string]int{}, errors: map[string]int{}}
		ended.Add(1)
		go func() {
			defer ended.Done()
			for done := 0; !stopping.Load() && (*limit == 0 || done < *limit); done++ {
				if all[number].logRun() && measuring.Load() {
					all[number].runs++
				}
			}
		}()
	}
	if *limit == 0 {
		time.Sleep(time.Duration(*warm * float64(time.Second)))
	}
	started := time.Now()
	measuring.Store(true)
	if *limit > 0 {
		ended.Wait()
	} else {
		time.Sleep(time.Duration(*seconds * float64(time.Second)))
		measuring.Store(false)
	}
	took := time.Since(started).Seconds()
	stopping.Store(true)
	ended.Wait() // what is under way is waited for, and counted if it fails
	report(all, took)
}

func report(all []*client, took float64) {
	var latencies []float64
	requests, answered, runs, fast, first := 0, 0, 0, 0, ""
	ok, failed := map[string]int{}, map[string]int{}
	for _, one := range all {
		latencies = append(latencies, one.measured...)
		requests += one.requests
		answered += one.answered
		runs += one.runs
		fast += one.fast
		for route, count := range one.ok {
			ok[route] += count
		}
		for kind, count := range one.errors {
			failed[kind] += count
		}
		if first == "" {
			first = one.first
		}
	}
	slices.Sort(latencies)
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cpu := float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
	text, err := json.Marshal(map[string]any{
		"seconds": took, "requests": requests, "measured": len(latencies), "answered": answered, "runs": runs, "fast": fast,
		"p50_ms": quantile(latencies, 0.5), "p99_ms": quantile(latencies, 0.99), "max_ms": quantile(latencies, 1),
		"ok": ok, "errors": failed, "first_error": first, "cpu_seconds": cpu,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(text))
}

// quantile returns a value of a sorted list, 0 of an empty one.
func quantile(sorted []float64, part float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(float64(len(sorted))*part), len(sorted)-1)]
}

// logRun logs one run as a training script does, and says whether all eight requests were answered by 200.
func (c *client) logRun() bool {
	now := time.Now().UnixMilli()
	created := c.post("runs/create", fmt.Appendf(nil,
		`{"experiment_id": "%s", "user_id": "trainer", "start_time": %d, "run_name": "run-%d", "tags": [`+
			`{"key": "mlflow.user", "value": "trainer"}, {"key": "mlflow.source.name", "value": "train.py"}, `+
			`{"key": "mlflow.source.type", "value": "LOCAL"}]}`, *experiment, now, rand.Int31()))
	if created == nil {
		return false
	}
	var answer struct {
		Run struct {
			Info struct {
				ID string `json:"run_id"`
			} `json:"info"`
		} `json:"run"`
	}
	if err := json.Unmarshal(created, &answer); err != nil || answer.Run.Info.ID == "" {
		c.failed("no run_id", fmt.Sprintf("runs/create answered %.200s", created))
		return false
	}
	id, good := answer.Run.Info.ID, true
	send := func(route, format string, arguments ...any) {
		if stopping.Load() { // a run cut short by the end is not a whole one
			good = false
			return
		}
		body := fmt.Appendf(nil, `{"run_id": "%s", `, id)
		good = c.post(route, append(fmt.Appendf(body, format, arguments...), '}')) != nil && good
	}
	for number := range 2 {
		send("runs/log-parameter", `"key": "p%d", "value": "%v"`, number, rand.Float64())
	}
	for number := range 3 {
		send("runs/log-metric", `"key": "m%d", "value": %v, "timestamp": %d, "step": 0`,
			number, rand.Float64(), time.Now().UnixMilli())
	}
	send("runs/set-tag", `"key": "stage", "value": "candidate"`)
	send("runs/update", `"status": "FINISHED", "end_time": %d`, time.Now().UnixMilli())
	return good
}

// post sends one request and returns the answer's body, or nil if it was not a 200; then it is counted.
func (c *client) post(route string, body []byte) []byte {
	message := make([]byte, 0, len(head)+len(body)+128)
	message = fmt.Appendf(message, "POST %s%s HTTP/1.1\r\n", api, route)
	message = append(message, head...)
	message = fmt.Appendf(message, "Content-Length: %d\r\n\r\n", len(body))
	message = append(message, body...)

	c.requests++
	counted := measuring.Load()
	started := time.Now()
	status, answer, err := c.exchange(message)
	if err != nil {
		c.failed(kindOf(err), fmt.Sprintf("%s: %v", route, err))
		if c.connection != nil {
			c.connection.Close()
			c.connection = nil
		} else {
			time.Sleep(50 * time.Millisecond) // nobody listens: a busy loop would only take processor time
		}
		return nil
	}
	if counted {
		c.measured = append(c.measured, float64(time.Since(started).Microseconds())/1000)
	}
	if status != 200 {
		c.failed(strconv.Itoa(status), fmt.Sprintf("%s: %d %.200s", route, status, answer))
		return nil
	}
	c.ok[route]++
	if counted {
		c.answered++
	}
	return answer
}

func (c *client) failed(kind, what string) {
	c.errors[kind]++
	if c.first == "" {
		c.first = what
	}
}

func kindOf(err error) string {
	var network net.Error
	switch {
	case errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	}
	return "broken"
}

// exchange writes a request and reads its answer, on a connection that it makes if there is none.
func (c *client) exchange(message []byte) (int, []byte, error) {
	if c.connection == nil {
		connection, err := net.DialTimeout("tcp", *target, timeout)
		if err != nil {
			return 0, nil, err
		}
		c.connection, c.reader = connection, bufio.NewReaderSize(connection, 16384)
	}
	if err := c.connection.SetDeadline(time.Now().Add(timeout)); err != nil {
		return 0, nil, err
	}
	if _, err := c.connection.Write(message); err != nil {
		return 0, nil, err
	}
	line, err := c.reader.ReadString('\n')
	if err != nil {
		return 0, nil, err
	}
	words := strings.Fields(line)
	if len(words) < 2 {
		return 0, nil, fmt.Errorf("no status line: %.80q", line)
	}
	status, err := strconv.Atoi(words[1])
	if err != nil {
		return 0, nil, fmt.Errorf("no status line: %.80q", line)
	}
	found, err := c.readHeaders()
	if err != nil {
		return 0, nil, err
	}
	body, err := c.readBody(found.length, found.chunked)
	if err != nil {
		return 0, nil, err
	}
	if found.fast {
		c.fast++
	}
	if found.closes {
		c.connection.Close()
		c.connection = nil
	}
	return status, body, nil
}

// headers is what matters of an answer's headers.
type headers struct {
	length                int
	chunked, closes, fast bool
}

func (c *client) readHeaders() (found headers, err error) {
	for {
		line, err := c.reader.ReadString('\n')
		if err != nil {
			return found, err
		}
		name, value, more := strings.Cut(strings.TrimSpace(line), ":")
		if !more {
			return found, nil
		}
		value = strings.ToLower(strings.TrimSpace(value))
		switch strings.ToLower(name) {
		case "content-length":
			if found.length, err = strconv.Atoi(value); err != nil {
				return found, err
			}
		case "transfer-encoding":
			found.chunked = value == "chunked"
		case "connection":
			found.closes = value == "close"
		case "x-answered-by":
			found.fast = value == "fastpath"
		}
	}
}

func (c *client) readBody(length int, chunked bool) ([]byte, error) {
	if !chunked {
		body := make([]byte, length)
		_, err := io.ReadFull(c.reader, body)
		return body, err
	}
	var body bytes.Buffer
	for {
		line, err := c.reader.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		length, err := strconv.ParseInt(size, 16, 32)
		if err != nil {
			return nil, err
		}
		chunk := make([]byte, length+2)
		if _, err := io.ReadFull(c.reader, chunk); err != nil {
			return nil, err
		}
		if length == 0 {
			return body.Bytes(), nil
		}
		body.Write(chunk[:length])
	}
}
