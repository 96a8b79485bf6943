// The proxy of `deno task deep chaos`: forwards one connection for each line of input, and injects a fault into it.
//
// A line of input is a plan as JSON. The proxy answers with a line that has the port to connect to, and prints another
// line when the fault strikes. The proxy is deterministic: the plan determines the fault.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

type plan struct {
	ID    int
	Port  int    // port to forward the connection to
	Fault string // none, split, delay, rate, pause, cut, reset, stall or flip
	Up    bool   // inject into data from the connecting side
	Down  bool   // inject into data from the other side
	At    int    // position of the fault in bytes of its direction
	Size  int    // split: bytes of a piece; rate: bytes per ms; delay, pause: milliseconds; flip: index of the bit
}

var saying sync.Mutex

func say(line map[string]interface{}) {
	saying.Lock()
	defer saying.Unlock()
	json.NewEncoder(os.Stdout).Encode(line)
}

// carrier is one forwarded connection.
type carrier struct {
	plan   plan
	near   *net.TCPConn
	far    *net.TCPConn
	struck sync.Once
	over   chan struct{} // closed when both directions have ended
}

func (c *carrier) strike() {
	c.struck.Do(func() { say(map[string]interface{}{"id": c.plan.ID, "struck": true}) })
}

func (c *carrier) destroy(reset bool) {
	for _, conn := range []*net.TCPConn{c.near, c.far} {
		if reset {
			conn.SetLinger(0)
		}
		conn.Close()
	}
}

// carry forwards one direction until it ends.
func (c *carrier) carry(from, to *net.TCPConn, spoiled bool) {
	b := make([]byte, 16*1024)
	at := 0
	for {
		n, err := from.Read(b)
		part := b[:n]
		if spoiled && at <= c.plan.At && c.plan.At < at+n {
			cut := c.plan.At - at
			if !c.write(to, part[:cut]) {
				return
			}
			part = part[cut:]
			if !c.spoil(part) {
				return
			}
		}
		at += n
		if !c.write(to, part) {
			return
		}
		if err != nil {
			to.CloseWrite()
			return
		}
	}
}

// spoil injects the fault; it returns false if nothing may be forwarded afterwards.
func (c *carrier) spoil(part []byte) bool {
	switch c.plan.Fault {
	case "cut", "reset":
		c.strike()
		c.destroy(c.plan.Fault == "reset")
		return false
	case "stall":
		c.strike()
		<-c.over
		return false
	case "pause":
		c.strike()
		time.Sleep(time.Duration(c.plan.Size) * time.Millisecond)
	case "flip":
		c.strike()
		part[0] ^= 1 << uint(c.plan.Size%8)
	}
	return true
}

// write forwards bytes at the pace of the plan; it returns false on an error.
func (c *carrier) write(to *net.TCPConn, part []byte) bool {
	for len(part) > 0 {
		n := len(part)
		switch c.plan.Fault {
		case "split":
			if n > c.plan.Size {
				n = c.plan.Size
			}
		case "delay":
			time.Sleep(time.Duration(c.plan.Size) * time.Millisecond)
		case "rate":
			if n > c.plan.Size*10 {
				n = c.plan.Size * 10
			}
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := to.Write(part[:n]); err != nil {
			return false
		}
		part = part[n:]
	}
	return true
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(p plan) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	say(map[string]interface{}{"id": p.ID, "port": listener.Addr().(*net.TCPAddr).Port})
	near, err := listener.Accept()
	check(err)
	listener.Close()
	far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.Port))
	check(err)
	c := &carrier{plan: p, near: near.(*net.TCPConn), far: far.(*net.TCPConn), over: make(chan struct{})}
	if p.Fault == "split" {
		// Keep the kernel from merging the pieces.
		c.near.SetNoDelay(true)
		c.far.SetNoDelay(true)
	}
	go func() {
		// Close connections that a fault keeps open, after the timeouts of both ends.
		time.Sleep(20 * time.Second)
		close(c.over)
		c.destroy(false)
	}()
	go c.carry(c.near, c.far, p.Up)
	c.carry(c.far, c.near, p.Down)
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var p plan
		check(json.Unmarshal(lines.Bytes(), &p))
		go serve(p)
	}
}
