// The Go peers of the comparison: `peer client|server NAME PLAN`, like end.ts, each with its own default options. Each
// peer has a file beside this one.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// stream is a stream of any peer.
type stream = io.ReadWriteCloser

// session opens and accepts streams.
type session interface {
	open() (stream, error)
	accept() (stream, error)
}

// muxer creates sessions over connections.
type muxer struct {
	client func(net.Conn) (session, error)
	server func(net.Conn) (session, error)
}

// muxers are the peers by name; each registers itself.
var muxers = map[string]muxer{}

// Each KiB of a bulk stream begins with its number.
const block = 1024

// Senders continue for this long after the receiver has measured.
const slack = 150 * time.Millisecond

type plan struct {
	Kind        string
	Connections int
	Streams     int
	Size        int
	Messages    int
	Warm        int
	Time        int
	Port        int
}

func (p plan) warm() time.Duration { return time.Duration(p.Warm) * time.Millisecond }
func (p plan) time() time.Duration { return time.Duration(p.Time) * time.Millisecond }

// meter measures a rate between two snapshots.
type meter struct {
	count int64
	over  int32
	rate  chan float64
}

func newMeter(p plan) *meter {
	m := &meter{rate: make(chan float64, 1)}
	go func() {
		time.Sleep(p.warm())
		count, start := atomic.LoadInt64(&m.count), time.Now()
		time.Sleep(p.time())
		atomic.StoreInt32(&m.over, 1)
		m.rate <- float64(atomic.LoadInt64(&m.count)-count) / time.Since(start).Seconds()
	}()
	return m
}

// The server.

func echo(s stream, size int) {
	defer s.Close()
	b := make([]byte, size)
	for {
		n, err := s.Read(b)
		if err != nil {
			return
		}
		if _, err := s.Write(b[:n]); err != nil {
			return
		}
	}
}

type drain struct {
	plan  plan
	once  sync.Once
	meter *meter
	open  int64
}

func (d *drain) take(s stream) {
	b := make([]byte, 64*1024)
	var position int
	var first uint32
	for {
		n, err := s.Read(b)
		if err == io.EOF {
			break
		}
		check(err)
		d.once.Do(func() { d.meter = newMeter(d.plan) })
		atomic.AddInt64(&d.meter.count, int64(n))
		for at := (block - position%block) % block; at+4 <= n; at += block {
			number := binary.LittleEndian.Uint32(b[at:]) - uint32((position+at)/block)
			if position+at == 0 {
				first = number
			} else if number != first {
				check(fmt.Errorf("wrong data at %d", position+at))
			}
		}
		position += n
	}
	s.Close()
	if atomic.AddInt64(&d.open, -1) == 0 {
		rate := <-d.meter.rate
		say(result{"bytes": atomic.LoadInt64(&d.meter.count), "rate": rate})
	}
}

func server(m muxer, p plan) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	d := &drain{plan: p, open: int64(p.Connections * p.Streams)}
	for {
		conn, err := listener.Accept()
		check(err)
		session, err := m.server(conn)
		check(err)
		go func() {
			for {
				s, err := session.accept()
				if err != nil {
					return
				}
				if p.Kind == "bulk" {
					go d.take(s)
				} else {
					go echo(s, p.Size)
				}
			}
		}()
	}
}

// The client.

func connect(m muxer, p plan) session {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.Port))
	check(err)
	session, err := m.client(conn)
	check(err)
	return session
}

func openAll(m muxer, p plan) (streams []stream) {
	for n := 0; n < p.Connections; n++ {
		session := connect(m, p)
		for k := 0; k < p.Streams; k++ {
			s, err := session.open()
			check(err)
			streams = append(streams, s)
		}
	}
	return streams
}

// each runs work for the numbers below count, all at the same time.
func each(count int, work func(n int)) {
	var all sync.WaitGroup
	for n := 0; n < count; n++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			work(n)
		}(n)
	}
	all.Wait()
}

func bulk(m muxer, p plan) result {
	streams := openAll(m, p)
	var stop int32
	time.AfterFunc(p.warm()+p.time()+slack, func() { atomic.StoreInt32(&stop, 1) })
	var bytes int64
	each(len(streams), func(n int) {
		b := make([]byte, p.Size)
		number := uint32(n) << 22
		for atomic.LoadInt32(&stop) == 0 {
			for at := 0; at < len(b); at += block {
				binary.LittleEndian.PutUint32(b[at:], number)
				number++
			}
			count, err := streams[n].Write(b)
			check(err)
			atomic.AddInt64(&bytes, int64(count))
		}
		check(streams[n].Close())
	})
	return result{"bytes": bytes}
}

// exchange sends a message and checks the echo.
func exchange(s stream, b, back []byte, number uint32) {
	binary.LittleEndian.PutUint32(b, number)
	binary.LittleEndian.PutUint32(b[len(b)-4:], ^number)
	_, err := s.Write(b)
	check(err)
	_, err = io.ReadFull(s, back)
	check(err)
	if binary.LittleEndian.Uint32(back) != number || binary.LittleEndian.Uint32(back[len(b)-4:]) != ^number {
		check(fmt.Errorf("wrong data in an echo"))
	}
}

// equalEchoes sends the same number of messages on every stream.
func equalEchoes(streams []stream, p plan) result {
	run := func(count int) {
		each(len(streams), func(n int) {
			b, back := make([]byte, p.Size), make([]byte, p.Size)
			for k := 0; k < count; k++ {
				exchange(streams[n], b, back, uint32(n)<<16+uint32(k))
			}
		})
	}
	run((p.Messages + 1) / 2)
	start := time.Now()
	run(p.Messages)
	return result{"rate": float64(p.Messages*len(streams)) / time.Since(start).Seconds()}
}

func echoes(m muxer, p plan) result {
	streams := openAll(m, p)
	if p.Messages > 0 {
		return equalEchoes(streams, p)
	}
	meter := newMeter(p)
	var lock sync.Mutex
	var times []float64
	each(len(streams), func(n int) {
		b, back := make([]byte, p.Size), make([]byte, p.Size)
		var own []float64
		for number := uint32(n) << 16; atomic.LoadInt32(&meter.over) == 0; number++ {
			start := time.Now()
			exchange(streams[n], b, back, number)
			own = append(own, time.Since(start).Seconds()*1000)
			atomic.AddInt64(&meter.count, 1)
		}
		lock.Lock()
		times = append(times, own[len(own)/4:]...)
		lock.Unlock()
	})
	sort.Float64s(times)
	return result{"rate": <-meter.rate, "p50": times[len(times)/2], "p99": times[len(times)*99/100]}
}

func churn(m muxer, p plan) result {
	session := connect(m, p)
	meter := newMeter(p)
	each(p.Streams, func(n int) {
		b, back := make([]byte, p.Size), make([]byte, p.Size)
		for number := uint32(n) << 16; atomic.LoadInt32(&meter.over) == 0; number++ {
			s, err := session.open()
			check(err)
			exchange(s, b, back, number)
			check(s.Close())
			atomic.AddInt64(&meter.count, 1)
		}
	})
	return result{"rate": <-meter.rate}
}

func usage() (resident, heap float64) {
	for n := 0; n < 3; n++ {
		debug.FreeOSMemory()
		time.Sleep(50 * time.Millisecond)
	}
	statm, err := os.ReadFile("/proc/self/statm")
	check(err)
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	check(err)
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(pages * os.Getpagesize()), float64(stats.HeapAlloc)
}

func memory(count int, work func() interface{}) result {
	resident, heap := usage()
	kept := work()
	residentAfter, heapAfter := usage()
	runtime.KeepAlive(kept)
	return result{
		"resident": (residentAfter - resident) / float64(count),
		"heap":     (heapAfter - heap) / float64(count),
	}
}

func streams(m muxer, p plan) result {
	return memory(p.Streams, func() interface{} {
		streams := openAll(m, p)
		for _, s := range streams {
			exchange(s, make([]byte, p.Size), make([]byte, p.Size), 1)
			// As in end.ts: an idle stream has a waiting read.
			go s.Read(make([]byte, p.Size))
		}
		return streams
	})
}

func sessions(m muxer, p plan) result {
	return memory(p.Connections, func() interface{} {
		var kept []session
		for n := 0; n < p.Connections; n++ {
			session := connect(m, p)
			s, err := session.open()
			check(err)
			exchange(s, make([]byte, p.Size), make([]byte, p.Size), uint32(n))
			check(s.Close())
			kept = append(kept, session)
		}
		time.Sleep(1500 * time.Millisecond)
		return kept
	})
}

func main() {
	endWithInput()
	m, known := muxers[os.Args[2]]
	if !known {
		check(fmt.Errorf("no peer %s", os.Args[2]))
	}
	var p plan
	check(json.Unmarshal([]byte(os.Args[3]), &p))
	if os.Args[1] == "server" {
		server(m, p)
	}
	clients := map[string]func(muxer, plan) result{
		"bulk": bulk, "echo": echoes, "churn": churn, "streams": streams, "sessions": sessions,
	}
	say(clients[p.Kind](m, p))
	select {}
}
